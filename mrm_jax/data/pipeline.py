"""What training and evaluation read: batches whose content is a pure function of (seed, step), and
labelled examples.

Global sample g = step * batch + i is picture `sample_index(seed, domain, count, g)`, scaled,
cropped and flipped by a generator seeded from (seed, domain, g). Under rare class sampling the
source picture is drawn for a class instead, by another generator of (seed, g); the target's draws
stay. Nothing else enters: not the worker, the thread, the host or what was read before. So a run
that starts at step n reads what an uninterrupted one would, and hosts read contiguous blocks of the
batch that one host would. grain runs the reading in threads or processes ahead of the device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import grain
import numpy as np

from mrm_jax.config import (
    Config,
    Data,
    Domain,
    evaluation_domain,
    has_evaluation,
    input_stats,
    source_domain,
)
from mrm_jax.data import rare_class, sources, transforms
from mrm_jax.data.batches import Batches
from mrm_jax.data.prepared import verified
from mrm_jax.errors import UsageError

if TYPE_CHECKING:
    from mrm_jax.types import Unlabelled

SOURCE, TARGET = 1, 2  # Streams of the two domains: their orders and crops are independent.
ORDER, DRAWS, CLASSES = 1, 2, 3  # Streams within a domain.
SELECTION_SEED = 0  # Of the crops that checkpoints are picked by; not the run's, see sources.py.
THREADS = 2  # Reading threads of one process; more gain nothing on two cores.
AHEAD = 8  # Batches ready before they are asked for.
CACHE_SHARE = 0.4  # Largest share of the machine's memory that `data.cache` fills.


class Example(NamedTuple):
    """A labelled picture at the size it is stored in: `image` RGB u8[H,W,3], `label` train ids
    u8[H,W], 255 = ignore.
    """

    name: str
    image: np.ndarray
    label: np.ndarray


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, domain: int, count: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, domain, ORDER, epoch)).permutation(count)


def sample_index(seed: int, domain: int, count: int, number: int) -> int:
    """Which of `count` pictures is global sample `number`: every epoch takes each once, in its own
    order.
    """
    epoch, position = divmod(number, count)
    return int(_permutation(seed, domain, count, epoch)[position])


class TrainingSamples:
    """Random access to training samples by global number, as dicts of arrays without a batch axis.
    Picklable.

    `sampler` draws the source pictures where rare class sampling is on (None: opened here). Without
    `target` no picture of the target is opened: `self.target` is None, and samples hold none.
    """

    def __init__(
        self, config: Config, sampler: rare_class.Sampler | None = None, *, target: bool = True
    ) -> None:
        data = config.data
        # The oracle learns from the labelled target; for every other method a target has no labels.
        source, field = source_domain(config), rare_class.source_field(config)
        self._sampler = sampler or rare_class.open_sampler(config)
        self._seed, self._crop, self._flip = config.seed, data.crop, data.flip
        self._boxes = {SOURCE: source.resize, TARGET: data.target.resize}
        self._scale = None if data.scale == (1, 1) else data.scale
        self._max_ratio = source.category_limit
        self._fill = input_stats(config.model).grey
        labelled = sources.open_labelled(source, data.classes, field=field)
        self.shards = tuple(labelled.shards)
        self.source = sources.Reader(
            functools.partial(_read_source, labelled, source, self._scale is None),
            len(labelled),
            field=field,
            on_unreadable=source.on_unreadable,
            limit_bytes=_cache_bytes(source, data),
        )
        self.target: sources.Reader | None = None
        if target:
            pictures = sources.open_pictures(data.target, field="config.data.target")
            self.shards += tuple(pictures.shards)
            self.target = sources.Reader(
                functools.partial(_read_target, pictures, data.target, self._scale is None),
                len(pictures),
                field="config.data.target",
                on_unreadable=data.target.on_unreadable,
                limit_bytes=_cache_bytes(data.target, data),
            )

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Sample `number`: source_image, source_label, target_image, target_valid (u8) and index
        (i32); without a target its two have neither rows nor columns.
        """
        image, label = self._source_sample(number)
        target, valid = self._target_sample(number)
        return {
            "source_image": image,
            "source_label": label,
            "target_image": target,
            "target_valid": valid,
            "index": np.asarray(number, np.int32),
        }

    def _target_sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if self.target is None:
            return np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8)
        how: dict[str, Any] = {"crop": self._crop, "flip": self._flip, "fill": self._fill}
        index = sample_index(self._seed, TARGET, len(self.target), number)
        return self.target(index, self._take(TARGET, number, transforms.augment_target, how))

    def _source_sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        how: dict[str, Any] = {"crop": self._crop, "max_ratio": self._max_ratio, "flip": self._flip}
        how["fill"] = self._fill
        if self._sampler is None:
            index = sample_index(self._seed, SOURCE, len(self.source), number)
            augment = transforms.augment_source
        else:
            choice = self._sampler.draw(
                np.random.default_rng((self._seed, SOURCE, CLASSES, number))
            )
            index, augment = choice.picture, transforms.augment_source_with
            how |= {"class_id": choice.class_id, "more_than": self._sampler.crop_pixels}
            how |= {"tries": self._sampler.tries}

        return self.source(index, self._take(SOURCE, number, augment, how))

    def _take(
        self, domain: int, number: int, augment: Callable[..., Any], how: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """What is made of a picture and its plane as they are read for sample `number`."""

        def take(image: transforms.Picture, plane: np.ndarray) -> Any:
            rng = np.random.default_rng((self._seed, domain, DRAWS, number))
            if self._scale is not None:
                factor = float(rng.uniform(*self._scale))
                image, plane = transforms.fit_source(image, plane, self._boxes[domain], factor)
            return augment(image, plane, rng, **how)

        return take


def _read_source(
    pictures: sources.LabelledPictures, domain: Domain, fitted: bool, index: int
) -> tuple[transforms.Picture, np.ndarray]:
    """A picture and its label, `fitted` into the box or, where every sample has a size of its own,
    as they are stored."""
    image, label = pictures.pair(index)
    return transforms.fit_source(image, label, domain.resize) if fitted else (image, label)


def _read_target(
    pictures: sources.Pictures, domain: Domain, fitted: bool, index: int
) -> tuple[transforms.Picture, np.ndarray]:
    """A picture and its validity map, whose margins count pixels of the picture as it was before
    `prepare` resized it."""
    native, image = pictures.native_size(index), pictures.picture(index)
    if fitted:
        return transforms.fit_target(image, domain.resize, domain.margins, native)
    return image, transforms.margin_map(native or image.shape[:2], domain.margins)


def _cache_bytes(domain: Domain, data: Data) -> int:
    """How much of a domain a process may keep: both domains of every loader process share
    `CACHE_SHARE`."""
    if not data.cache or domain.kind == "drawn":  # drawn scenes are kept where they are drawn
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(memory * CACHE_SHARE / 2 / max(1, data.workers))


def _global_number(
    local: int, *, start_step: int, batch: int, block: int, process_index: int
) -> int:
    """The global sample of a host's `local`-th one: hosts take contiguous blocks of `block` samples
    of every batch.
    """
    step, position = divmod(local, block)
    return (start_step + step) * batch + process_index * block + position


def train_batches(
    config: Config,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    sampler: rare_class.Sampler | None = None,
    target: bool = True,
) -> Batches:
    """This host's part of the batches of steps `start_step` .. `train.steps` - 1: numpy arrays,
    uint8 pictures.

    Of a global batch, host h of n holds samples h*B/n .. (h+1)*B/n - 1; `index` is their global
    number. `sampler` is the one of `rare_class.open_sampler` (None: opened here where the config
    asks for it). Without `target` no target picture is read (`uda.methods.looks_at_target`), and
    those of a batch are u8[B,0,0,3]. Reading runs ahead in `data.workers` processes, or in threads.
    Errors of a sample are raised when its batch is asked for, as is RunError where a prepared set's
    file is found wrong in the background (`verified.ShardWatch`). Raises UsageError at once for a
    data set that cannot be opened or a batch that hosts cannot share.
    """
    batch = config.train.batch
    if batch % process_count:
        raise UsageError(
            f"config.train.batch is {batch}, not a multiple of {process_count} hosts",
            "change one of them.",
            field="config.train.batch",
            value=batch,
        )
    block = batch // process_count
    samples = TrainingSamples(config, sampler, target=target)
    number = functools.partial(
        _global_number, start_step=start_step, batch=batch, block=block, process_index=process_index
    )
    # Drawing by global number inside the map is what makes slicing by host safe: grain's own seeded
    # maps would count positions after the slice, and give other draws for another number of hosts.
    dataset = (
        grain.MapDataset.range(max(0, config.train.steps - start_step) * block)
        .map(number)
        .map(samples)
        .batch(block, drop_remainder=True)
    )
    ahead = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    )
    return Batches(ahead, config.data.workers, verified.ShardWatch(samples.shards).check)


def selection_crops(config: Config) -> Unlabelled | None:
    """Crops of `evaluation.selection_pictures` pictures spread evenly over the target's, as
    u8[N,H,W,...]: what checkpoints are picked by. None where that is 0, and where no target is
    named (the run's method needs none then: `TrainingSamples` opens it for all others).

    Fitted and cropped as for training, without flips, and the same for every seed and at every
    call. Labels are not opened: they need not exist. Raises as `TrainingSamples` does for a picture
    that cannot be read.
    """
    from mrm_jax.types import Unlabelled

    domain, wanted = config.data.target, config.evaluation.selection_pictures
    if not wanted or (domain.kind == "folder" and not domain.path):
        return None
    pictures = sources.open_pictures(domain, field="config.data.target")
    read = sources.Reader(
        functools.partial(_read_target, pictures, domain, True),
        len(pictures),
        field="config.data.target",
        on_unreadable=domain.on_unreadable,
    )
    count = min(wanted, len(pictures))

    fill = input_stats(config.model).grey

    def crop(place: int, picture: transforms.Picture, valid: np.ndarray) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng((SELECTION_SEED, place))
        return transforms.augment_target(
            picture, valid, rng, crop=config.data.crop, flip=0.0, fill=fill
        )

    crops = [
        read(place * len(pictures) // count, functools.partial(crop, place))
        for place in range(count)
    ]
    image, valid = zip(*crops, strict=True)
    return Unlabelled(image=np.stack(image), valid=np.stack(valid))


class Examples(Sequence[Example]):
    """Labelled pictures, read when asked for. Slices are Examples too."""

    def __init__(
        self, pictures: sources.LabelledPictures, chosen: Sequence[int], watch: verified.ShardWatch
    ) -> None:
        self._pictures, self._chosen, self._watch = pictures, chosen, watch

    @property
    def names(self) -> list[str]:
        """Of all pictures, none of which is read."""
        return [self._pictures.name(index) for index in self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        """The example at `index`; raises UnreadableError naming the file, whatever `on_unreadable`
        says.
        """
        if isinstance(index, slice):
            return Examples(self._pictures, self._chosen[index], self._watch)
        self._watch.check()
        at = self._chosen[index]
        return Example(self._pictures.name(at), *sources.read_pair(self._pictures, at))


def evaluation_set(config: Config) -> Sequence[Example]:
    """The labelled pictures of `data.evaluation` at stored size (the protocol resizes), at most
    `evaluation.limit`.

    Empty where the config names no labels (`has_evaluation`). No picture is ever left out silently:
    a score without it would not be comparable. Raises UsageError for a set that cannot be opened.
    """
    if not has_evaluation(config):
        return ()
    pictures = sources.open_labelled(
        evaluation_domain(config), config.data.classes, field="config.data.evaluation"
    )
    limit = config.evaluation.limit
    watch = verified.ShardWatch(pictures.shards)
    count = len(pictures) if limit is None else min(limit, len(pictures))
    return Examples(pictures, range(count), watch)
