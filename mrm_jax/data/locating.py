"""Which splits of a download are there, and where their pictures and labels lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mrm_jax.config import Domain
from mrm_jax.data import finding
from mrm_jax.data.datasets import DataSet
from mrm_jax.data.tree import File, walk, walk_archives
from mrm_jax.errors import UsageError


@dataclass(frozen=True)
class Located:
    """The files of a split: stem to picture and stem to label, and stems that occur twice.

    domain: the reading that fits, which says how labels are stored. `labels` is empty for an
    unlabelled split; where it is not, it may lack some. `orphans`: labels that have no picture.
    `copies`: stems of pictures that lie there twice and count once. `lacking`: stems that the
    split's list names and that have none. `others`: names of pictures in the folder where the
    pattern starts that no split takes. `alone`: all pictures there are, because none lies where
    the config says.
    """

    split: str
    domain: Domain
    pictures: dict[str, File]
    labels: dict[str, File]
    repeated: dict[str, list[File]]
    orphans: dict[str, File]
    copies: list[str]
    taken: frozenset[File]
    lacking: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    alone: bool = False

    def left_out(self) -> list[str]:
        """A line for each kind of picture that is there and not used, and for pictures alone."""
        alone = f"{len(self.pictures)} pictures alone, found at any depth, without labels."
        return [*([alone] if self.alone else []), *finding.left_out(self.copies, self.others)]


def locate(data_set: DataSet, root: Path) -> dict[str, Located]:
    """The splits of a download that lies in `root`: a folder as it unpacks, possibly below other
    folders, a folder with zip archives, or an archive.

    Raises UsageError where no split is found, or an archive is refused.
    """
    field = f"{data_set.name} --from"
    if not root.exists():
        raise UsageError.at(field, f": there is no folder {root}.")
    names = [*(walk(root) if root.is_dir() else ()), *walk_archives(root, field=field)]
    names.sort(key=lambda pair: pair[0])
    found = {}
    for split, what in data_set.splits.items():
        candidates = [_read_as(domain, split, names) for domain in what.readings]
        best = max(candidates, key=lambda c: (len(c.labels), len(c.pictures)))
        if not best.pictures and what.otherwise is not None:
            best = replace(_read_as(what.otherwise, split, names), alone=True)
        if best.pictures:
            found[split] = best
    if not found:
        first = next(iter(data_set.splits.values())).readings[0]
        where = "/".join(part for part in (first.images, f"*{first.image_suffix}") if part)
        raise UsageError.at(
            field,
            f": {root} holds no picture of {data_set.title}; it should hold files such as "
            f"{where}, as the download unpacks, or its zip archives.",
            finding.higher(root, first.images),
        )
    return _with_others(found, names)


def _with_others(found: dict[str, Located], names: list[tuple[str, File]]) -> dict[str, Located]:
    """`found`, each picture that no split takes in the first split whose pattern starts above."""
    taken = frozenset().union(*(each.taken for each in found.values()))
    rest = [name for name, file in finding.pictures(names) if file not in taken]
    told = {}
    for split, each in found.items():
        start = finding.fixed_part(each.domain.images)
        mine = [name for name in rest if not start or f"/{start}/" in f"/{name}"]
        rest = [name for name in rest if name not in set(mine)] if mine else rest
        told[split] = replace(each, others=tuple(mine))
    return told


def _read_as(domain: Domain, split: str, names: list[tuple[str, File]]) -> Located:
    all_names, lacking = names, list[str]()
    if domain.labels and not domain.images:  # labels below the pictures are no pictures
        inside = f"{domain.labels}/"
        names = [pair for pair in names if not pair[0].startswith(inside)]
    matched = finding.by_stem(names, domain.images, domain.image_suffix, leading=True)
    pictures, copies = matched.once()
    if domain.listing:
        lists = [file for name, file in names if f"/{name}".endswith(f"/{domain.listing}")]
        wanted = finding.stems(lists[0], pictures) if lists else []
        lacking = [stem for stem in wanted if stem not in pictures]
        pictures = {stem: pictures[stem] for stem in wanted if stem in pictures}
    given: dict[str, list[File]] = {}
    if domain.labels and pictures:
        labelled = finding.by_stem(all_names, domain.labels, domain.label_suffix, leading=True)
        given = labelled.every()
    return Located(
        split=split,
        domain=domain,
        pictures={stem: found[0] for stem, found in pictures.items()},
        labels={stem: given[stem][0] for stem in pictures if stem in given},
        repeated={stem: found for stem, found in pictures.items() if len(found) > 1},
        orphans={} if domain.listing else _orphans(given, {*pictures, *copies}),
        copies=[] if domain.listing else copies,
        lacking=tuple(lacking) if pictures else (),
        taken=frozenset(
            file for stems in (*matched, given) for found in stems.values() for file in found
        ),
    )


def _orphans(given: dict[str, list[File]], pictures: set[str]) -> dict[str, File]:
    """Labels without a picture; "00001_labelTrainIds" beside "00001" is another form of one."""
    return {
        stem: found[0]
        for stem, found in given.items()
        if stem not in pictures and stem.rpartition("_")[0] not in pictures
    }
