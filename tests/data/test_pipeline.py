import itertools
import shutil
from dataclasses import replace

import cv2
import downloads
import numpy as np
import pytest
from drawn_config import drawn_config as _config
from refusals import refused

from mrm_jax import config as options
from mrm_jax.data import pipeline, sources
from mrm_jax.errors import UsageError


def _arrays(batch):
    return (
        batch.source.image,
        batch.source.label,
        batch.target.image,
        batch.target.valid,
        batch.index,
    )


def _equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for array, expected in zip(_arrays(batch), _arrays(other), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_batches_have_the_documented_types_and_shapes():
    batches = list(pipeline.train_batches(_config()))
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        image, label, target, valid, index = _arrays(batch)
        assert image.shape == target.shape == (4, 24, 48, 3)
        assert label.shape == valid.shape == (4, 24, 48)
        assert {array.dtype for array in (image, label, target, valid)} == {np.dtype(np.uint8)}
        np.testing.assert_array_equal(index, np.arange(4 * step, 4 * step + 4))
        assert index.dtype == np.int32
        assert set(np.unique(valid)) <= {0, 1}


def test_starting_at_a_step_reads_what_an_uninterrupted_run_reads():
    whole = list(pipeline.train_batches(_config()))
    _equal(whole[4:], pipeline.train_batches(_config(), start_step=4))
    assert list(pipeline.train_batches(_config(), start_step=6)) == []


def test_more_steps_change_nothing_of_the_first_ones():
    longer = itertools.islice(pipeline.train_batches(_config(steps=9)), 6)
    _equal(pipeline.train_batches(_config()), longer)


@pytest.mark.parametrize("rare_class", [False, True])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_contiguous_blocks_of_the_batch_of_one_host(hosts, rare_class):
    rare = options.RareClass(rare_class, min_share=0.01, on_missing="warn")
    config = _config(rare_class=rare)
    whole = pipeline.train_batches(config)
    parts = [
        pipeline.train_batches(config, process_index=h, process_count=hosts) for h in range(hosts)
    ]
    for batch, *blocks in zip(whole, *parts, strict=True):
        for array, *pieces in zip(_arrays(batch), *map(_arrays, blocks), strict=True):
            np.testing.assert_array_equal(array, np.concatenate(pieces))


def test_loader_processes_and_threads_read_the_same_batches():
    _equal(
        pipeline.train_batches(_config(steps=3, workers=2)),
        pipeline.train_batches(_config(steps=3)),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_target_none_is_opened_and_the_source_stays_as_it_is(monkeypatch, workers):
    whole = list(pipeline.train_batches(_config(steps=2)))

    def refuse(*args, **kwargs):
        pytest.fail("the target was opened")

    monkeypatch.setattr(sources, "open_pictures", refuse)
    found = list(pipeline.train_batches(_config(steps=2, workers=workers), target=False))
    for batch, expected in zip(found, whole, strict=True):
        image, label, target, valid, index = _arrays(batch)
        wanted = expected.source.image, expected.source.label, expected.index
        for array, same in zip((image, label, index), wanted, strict=True):
            np.testing.assert_array_equal(array, same)
        assert (target.shape, valid.shape) == ((4, 0, 0, 3), (4, 0, 0))
        assert target.dtype == valid.dtype == np.uint8


def test_the_cache_changes_nothing():
    _equal(
        pipeline.train_batches(_config(cache=True)), pipeline.train_batches(_config(cache=False))
    )


def test_every_epoch_takes_each_picture_once_in_an_order_of_its_own():
    orders = [
        [pipeline.sample_index(7, domain, 10, g) for g in range(start, start + 10)]
        for domain in (pipeline.SOURCE, pipeline.TARGET)
        for start in (0, 10, 20)
    ]
    for order in orders:
        assert sorted(order) == list(range(10))
    assert len({tuple(order) for order in orders}) == len(orders)


def test_the_seed_decides_order_and_crops():
    first, second = (next(iter(pipeline.train_batches(_config(seed=s)))) for s in (0, 1))
    assert (first.source.image != second.source.image).any()
    assert (first.target.image != second.target.image).any()


def test_margins_reach_the_batch_as_validity():
    config = _config(crop=(32, 64), flip=0.0)
    batch = next(iter(pipeline.train_batches(config)))
    expected = np.ones((32, 64), np.uint8)
    expected[:2] = expected[-3:] = 0
    np.testing.assert_array_equal(batch.target.valid, np.broadcast_to(expected, (4, 32, 64)))


def test_the_oracle_is_given_the_labelled_target_as_its_source():
    config = _config(crop=(32, 64), flip=0.0)
    config = replace(config, method=options.Method(kind="target_only"))
    batch = next(iter(pipeline.train_batches(config)))
    pictures = sources.open_labelled(
        config.data.target, downloads.table(17), field="config.data.target"
    )
    index = pipeline.sample_index(0, pipeline.SOURCE, 10, 0)
    np.testing.assert_array_equal(batch.source.image[0], pictures.image(index))
    np.testing.assert_array_equal(batch.source.label[0], pictures.label(index))


def _folder_config(root):
    for name, look in (("source", "rendered"), ("target", "camera")):
        pictures = sources.DrawnLabelled(
            options.Domain(kind="drawn", look=look, count=4, size=(32, 64)), 17, "drawn"
        )
        for part in ("images", "labels"):
            (root / name / part).mkdir(parents=True)
        for k in range(4):
            cv2.imwrite(str(root / name / "images" / f"{k}.png"), pictures.image(k)[..., ::-1])
            cv2.imwrite(str(root / name / "labels" / f"{k}.png"), pictures.label(k))

    def domain(name):
        return options.Domain(path=str(root / name), images="images", labels="labels")

    return _config(
        source=domain("source"),
        target=domain("target"),
        evaluation=replace(domain("target"), path=None),
    )


def test_deleting_the_labels_of_the_target_changes_no_batch(tmp_path):
    config = _folder_config(tmp_path)
    before = list(pipeline.train_batches(config))
    shutil.rmtree(tmp_path / "target" / "labels")
    _equal(before, pipeline.train_batches(config))


def test_evaluation_falls_back_to_the_folder_of_the_target(tmp_path):
    config = _folder_config(tmp_path)
    examples = pipeline.evaluation_set(config)
    assert [example.name for example in examples] == ["0", "1", "2", "3"]
    assert examples[1:3][0].name == "1"
    np.testing.assert_array_equal(
        examples[2].label, cv2.imread(str(tmp_path / "target/labels/2.png"), -1)
    )
    limited = replace(config, evaluation=replace(config.evaluation, limit=3))
    assert len(pipeline.evaluation_set(limited)) == 3


def test_an_unreadable_picture_ends_training_by_name_or_is_left_out(tmp_path):
    config = _folder_config(tmp_path)
    (tmp_path / "target" / "images" / "2.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"config\.data\.target: .*2\.png is empty"):
        list(pipeline.train_batches(config))
    target = replace(config.data.target, on_unreadable="skip")
    skipping = replace(config, data=replace(config.data, target=target))
    assert len(list(pipeline.train_batches(skipping))) == 6
    # A score is never computed on fewer pictures than it says.
    evaluation = replace(config.data.evaluation, on_unreadable="skip")
    scored = replace(config, data=replace(config.data, evaluation=evaluation))
    with refused(tmp_path / "target/images/2.png", way_out="fetch it again"):
        list(pipeline.evaluation_set(scored))


def test_an_empty_target_folder_is_named_before_training_starts(tmp_path):
    config = _folder_config(tmp_path)
    shutil.rmtree(tmp_path / "target" / "images")
    (tmp_path / "target" / "images").mkdir()
    with refused("config.data.target.path"):
        pipeline.train_batches(config)


def test_a_batch_that_hosts_cannot_share_is_refused():
    with refused("config.train.batch", 4, way_out="change one of them"):
        pipeline.train_batches(_config(), process_index=0, process_count=3)


def test_pictures_are_as_large_as_a_draw_of_their_own_says():
    """Of the source and the target, against OpenCV on pictures that are resized whole."""
    config = _config(steps=4)
    data = replace(
        config.data,
        scale=(0.8, 1.6),
        flip=0.0,
        source=replace(config.data.source, resize=(150, 70), category_limit=1.0),
        target=replace(config.data.target, margins=(3, 8, 0, 5)),
    )
    config = replace(config, data=data)
    samples = pipeline.TrainingSamples(config)
    read = sources.open_labelled(data.source, data.classes, field="")
    seen = sources.open_pictures(data.target, field="")
    heights = set()
    for number in range(6):
        sample = samples(number)
        for domain, opened, name, box in (
            (pipeline.SOURCE, read, "source", (150, 70)),
            (pipeline.TARGET, seen, "target", None),
        ):
            index = pipeline.sample_index(config.seed, domain, len(opened), number)
            image = opened.image(index)
            rng = np.random.default_rng((config.seed, domain, pipeline.DRAWS, number))
            factor = rng.uniform(0.8, 1.6)
            height, width = image.shape[:2]
            if box:
                factor *= min(max(box) / max(height, width), min(box) / min(height, width))
            size = (int(height * factor + 0.5), int(width * factor + 0.5))
            heights.add(size[0])
            resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            if name == "source":
                plane = read.label(index)
            else:
                plane = np.zeros((height, width), np.uint8)
                plane[3 : height - 8, : width - 5] = 1
            plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST)
            rows, columns = (min(a, b) for a, b in zip(size, data.crop, strict=True))
            top = rng.integers(0, size[0] - rows + 1)
            left = rng.integers(0, size[1] - columns + 1)
            there = (slice(top, top + rows), slice(left, left + columns))
            inside = (slice(rows), slice(columns))
            np.testing.assert_array_equal(sample[f"{name}_image"][inside], resized[there])
            found = sample["source_label" if name == "source" else "target_valid"]
            np.testing.assert_array_equal(found[inside], plane[there])
            assert (found[rows:] == (255 if name == "source" else 0)).all()
    assert len(heights) > 8, "every sample has a size of its own"
    again = list(pipeline.train_batches(config, start_step=2))
    _equal(list(pipeline.train_batches(config))[2:], again)
