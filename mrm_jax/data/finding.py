"""Which files of a folder are pictures and labels of a set, by the stems of their names."""

from __future__ import annotations

import codecs
import itertools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mrm_jax.data.files import SUFFIXES, UnreadableError, content_of
from mrm_jax.data.tree import ANY, File, Matched, match, walk
from mrm_jax.errors import UsageError
from mrm_jax.paths import as_path, as_text, shown

Entry = TypeVar("Entry")
log = logging.getLogger(__name__)


def find_pictures(
    root: Path, folder: str, suffix: str, *, field: str, without: str | None = None
) -> dict[str, File]:
    """Stem to file of all pictures in the folders below `root` that `folder` stands for, sorted by
    stem (see `tree.match`), each once; without its extension when `suffix` is empty.

    What lies in `without`, a folder below, is left out; other pictures that are left out are
    counted in the log. Raises UsageError for a missing or empty folder and for two files of one
    stem; `field` names the config option.
    """
    names = _below(root, folder, field=f"{field}.path", without=without)
    matched = by_stem(names, folder, suffix)
    found, copies = matched.once()
    if not found:
        kind = f"file ending in '{suffix}'" if suffix else f"picture ({' '.join(SUFFIXES)})"
        raise UsageError.at(f"{field}.path", f": {root / as_path(folder)} holds no {kind}.")
    taken = {str(file) for by in matched for files in by.values() for file in files}
    others = [name for name, file in pictures(names) if str(file) not in taken]
    for line in left_out(copies, others):
        log.warning("%s: %s", field, line)
    return one_each(found, field=f"{field}.path")


def left_out(copies: Sequence[str], others: Sequence[str]) -> list[str]:
    """What is said of pictures that are there and not used: copies, and those that no pattern
    takes."""
    lines = []
    if copies:
        lines.append(
            f"{len(copies)} pictures are there twice, in folders and flattened, and count once; "
            f"{shown(copies[0])} is one that is left out."
        )
    if others:
        lines.append(
            f"{len(others)} other pictures are left out, by their folder or the end "
            f"of their name; {shown(others[0])} is one."
        )
    return lines


def listed(root: Path, folder: str, suffix: str, *, field: str) -> dict[str, File]:
    """`find_pictures` with copies, and empty where there is no such file."""
    names = _below(root, folder, field=field)
    return one_each(by_stem(names, folder, suffix).every(), field=field)


def endings(root: Path, folder: str, suffix: str, field: str) -> str:
    """Advice on a suffix by which no file of a folder is found: how they end; else to check it."""
    ends = Counter(PurePosixPath(name).suffix for name, _ in _below(root, folder, field=field))
    other = next((end for end, _ in ends.most_common() if end and end != suffix), "")
    if other and not any(suffix.endswith(end) for end in ends if end):
        return f"files there end in {other}: set {field}.label_suffix={other}; or "
    return "check labels and label_suffix, "


def _below(
    root: Path, folder: str, *, field: str, without: str | None = None
) -> list[tuple[str, File]]:
    """(name below `root`, file) of all that lies in the folder from which a pattern starts."""
    start = root / as_path(fixed_part(folder))
    if not start.is_dir():
        if not root.is_dir():
            start = root
        way_out = higher(root, folder) or "Set it to where the pictures lie."
        way_out = "" if field.endswith(".labels") else way_out
        raise UsageError.at(field, f": there is no folder {start}.", way_out)
    base = as_text(start.relative_to(root).as_posix())
    names = ((name if base == "." else f"{base}/{name}", file) for name, file in walk(start))
    labels = f"{without.rstrip('/')}/" if without else None
    if labels and not folder.startswith(labels.rstrip("/")):
        names = ((name, file) for name, file in names if not name.startswith(labels))
    return list(names)


def higher(root: Path, folder: str) -> str:
    """The way out where `root` is the pattern's folder itself, or on the way to it; else empty."""
    inner = Path(as_path(fixed_part(folder)))
    for count, up in enumerate(root.parents[: len(inner.parts)], 1):
        if root.parts[-count:] == inner.parts[:count] and (up / inner).is_dir():
            return f"Give the folder one level up, {up}, which holds {inner}."
    return ""


def fixed_part(folder: str) -> str:
    """The folder from which a pattern starts."""
    return "/".join(itertools.takewhile(lambda part: part != ANY, folder.split("/")))


def pictures(names: Iterable[tuple[str, File]]) -> Iterable[tuple[str, File]]:
    """Those with the extension of a picture."""
    return (pair for pair in names if PurePosixPath(pair[0]).suffix.lower() in SUFFIXES)


def by_stem(
    names: Iterable[tuple[str, File]], folder: str, suffix: str, *, leading: bool = False
) -> Matched:
    """`tree.match`; an empty `suffix` stands for the extension of any picture."""
    if suffix:
        return match(names, folder, suffix, leading=leading)
    found = Matched({}, {})
    matched = match(pictures(names), folder, "", leading=leading)
    for stems, bare in zip(matched, found, strict=True):
        for stem, files in stems.items():
            bare.setdefault(PurePosixPath(stem).with_suffix("").as_posix(), []).extend(files)
    return found


def one_each(found: Mapping[str, Sequence[File]], *, field: str) -> dict[str, File]:
    """`found` with the only file of each stem. Raises UsageError for a second one."""
    for stem, files in found.items():
        if len(files) > 1:
            raise UsageError.at(
                field,
                f": {files[0]} and {files[1].name} share the stem '{stem}'",
                "set image_suffix, or remove one of them.",
            )
    return {stem: files[0] for stem, files in found.items()}


def chosen(found: Mapping[str, Entry], listing: Path, *, field: str) -> dict[str, Entry]:
    """The pictures that a text file names, one stem a line, in its order; blank lines are skipped.

    Raises UsageError for a missing or empty list, a stem without a picture, or a stem named twice.
    """
    if not listing.is_file():
        raise UsageError.at(f"{field}.listing", f": there is no file {listing}.")
    picked: dict[str, Entry] = {}
    for stem in stems(listing, found):
        if stem not in found:
            near = next(iter(found))
            raise UsageError.at(
                f"{field}.listing",
                f": '{stem}' of {listing} has no picture; stems look like '{near}'.",
            )
        if stem in picked:
            raise UsageError.at(
                f"{field}.listing", f": '{stem}' occurs twice in {listing}", "keep one."
            )
        picked[stem] = found[stem]
    if not picked:
        raise UsageError.at(f"{field}.listing", f": {listing} names no picture.")
    return picked


_MARKS = (  # UTF-32's first: its mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def stems(listing: File, known: Container[str] = ()) -> list[str]:
    """The stems that a text file names, one a line, without blank lines: text in the encoding that
    its byte order mark says, UTF-8 without one.

    Raises UnreadableError where it is none; but a name of `known` that is no UTF-8 on the disk
    either stands with the same bytes, as in `paths.as_text`.
    """
    content = content_of(listing)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        text = content.decode("utf-8", "surrogateescape")
        names = _lines(text)
        odd = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
        if encoding == "utf-8" and b"\0" not in content and all(name in known for name in odd):
            return names
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableError.at(
            listing, f" is no {encoding.upper()} text (line {line})", _guessed(content, encoding)
        ) from error
    if "\0" in text:
        raise UnreadableError.at(listing, " is no UTF-8 text", _guessed(content, encoding))
    return _lines(text)


def _lines(text: str) -> list[str]:
    return [
        unicodedata.normalize("NFC", stem)
        for line in re.split("\r\n|\r|\n", text)
        if (stem := line.strip())
    ]


def _guessed(content: bytes, encoding: str) -> str:
    """What to do with a text that is not of the encoding that it should have."""
    if encoding != "utf-8":
        return "fetch it again, or save it as UTF-8."
    looks = "UTF-16 without a byte order mark" if b"\0" in content else "Latin-1 (Windows-1252)"
    return f"it looks like {looks}: save it as UTF-8."
