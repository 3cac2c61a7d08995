"""Files below a folder, and in the zip archives that lie in it, under one kind of name.

A name is the path below the root, with forward slashes. Symbolic links are followed, since data
sets are often linked together from several disks; a loop of links is walked once. Archives are read
where they lie and never unpacked.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from mrm_jax.errors import UsageError
from mrm_jax.paths import as_text, below, is_remote, names_below, refusal

ANY = "**"
"""In the pattern of a folder: any folders or none, such as ACDC's conditions."""


class File(Protocol):
    """What is read: a path or a member of an archive."""

    @property
    def name(self) -> str:
        """The last part of its name."""
        ...

    def read_bytes(self) -> bytes:
        """The content; raises OSError."""
        ...


@dataclass(frozen=True)
class Member:
    """A file in a zip archive."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """See `File`."""
        return PurePosixPath(self.member).name

    def read_bytes(self) -> bytes:
        """See `File`; a damaged member raises OSError too."""
        return self.first(-1)

    def first(self, count: int) -> bytes:
        """So many bytes of the content, or all where `count` is negative; as `read_bytes`."""
        try:
            with _opened(str(self.archive), os.getpid()).open(self.member) as file:
                return file.read(count)
        except Exception as error:  # each kind of compression raises its own
            what = " ".join(str(error).split()) or type(error).__name__
            raise OSError(0, f"a damaged or locked member of its archive ({what})") from error

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


def first(file: File, count: int) -> bytes:
    """So many bytes of a file; raises OSError."""
    if isinstance(file, Member):
        return file.first(count)
    path: Any = file
    with path.open("rb") as opened:
        return opened.read(count)


def size_of(file: File) -> int:
    """Bytes of a file, or of a member once it is unpacked."""
    if isinstance(file, Member):
        return _opened(str(file.archive), os.getpid()).getinfo(file.member).file_size
    stat_of: Any = file
    return stat_of.stat().st_size


@functools.lru_cache(maxsize=16)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    del process  # a process of its own needs a file position of its own
    return zipfile.ZipFile(archive)


def passed_over(part: str) -> bool:
    """Whether a part of a name is hidden, or the folder of what macOS adds to archives."""
    return part.startswith(".") or part == "__MACOSX"


def walk(root: Path) -> Iterator[tuple[str, File]]:
    """(name, file) of every file below `root` that is not hidden, in no particular order. The
    folder __MACOSX that unpacking leaves is hidden too."""
    if is_remote(root):
        for name in names_below(root):
            if not any(map(passed_over, name.split("/"))):
                yield name, below(root, name)
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not passed_over(name)]
        for name in files:
            path = Path(folder, name)
            if not passed_over(name) and path.is_file():
                yield as_text(path.relative_to(root).as_posix()), path


def walk_archives(root: Path, *, field: str) -> Iterator[tuple[str, File]]:
    """(name, file) of every member of the zip archives that lie in `root`, or of `root` itself.

    Raises UsageError for what is no archive, and for a member that would lie outside.
    """
    archives = [root] if root.is_file() else sorted(root.glob("*.zip"))
    for archive in archives:
        try:
            members = _opened(str(archive), os.getpid()).infolist()
        except Exception as error:  # a damaged list of members raises what its fields lead to
            what = " ".join(str(error).split()) or type(error).__name__
            raise UsageError.at(
                field, f": {archive} is no zip archive that can be read ({what})", "fetch it again."
            ) from error
        for member in members:
            parts = PurePosixPath(member.filename).parts
            link = stat.S_ISLNK(member.external_attr >> 16)
            what = "is a link" if link else refusal(PurePosixPath(member.filename).as_posix())
            if "\0" in member.orig_filename:  # names end there for zipfile
                what = "has a name with a NUL byte"
            if what is not None:
                raise UsageError.at(
                    field,
                    f": the member {member.orig_filename!r} of {archive} {what}; such an archive "
                    "is refused.",
                    "Fetch it from its official source.",
                )
            if not member.is_dir() and not any(map(passed_over, parts)):
                yield member.filename, Member(archive, member.filename)


class Matched(NamedTuple):
    """What a pattern stands for, stem to files: with folders in place of `ANY`, and with none."""

    nested: dict[str, list[File]]
    flat: dict[str, list[File]]

    def every(self) -> dict[str, list[File]]:
        """All of it, sorted by stem."""
        return dict(sorted((self.nested | self.flat).items()))

    def once(self) -> tuple[dict[str, list[File]], list[str]]:
        """Every picture once, sorted by stem, and the stems that are left out as copies.

        A script that flattens a set leaves copies of its pictures, files of one name and size,
        beside their folders. Where each has one the copies count, else the folders do; a flat file
        that is no copy counts in both cases.
        """
        copies: dict[tuple[str, int], list[str]] = {}
        if self.nested and self.flat:
            for stem, files in self.flat.items():
                copies.setdefault((stem.rpartition("/")[2], size_of(files[0])), []).append(stem)
        pairs = [
            (stem, other)
            for stem, files in (self.nested.items() if copies else ())
            for other in copies.get((stem.rpartition("/")[2], size_of(files[0])), ())
        ]
        flattened = len({flat for _, flat in pairs}) >= len(self.nested)
        nested = {} if flattened and pairs else self.nested
        gone = () if flattened else {flat for _, flat in pairs}
        flat = {stem: files for stem, files in self.flat.items() if stem not in gone}
        out = [s for s in (*self.nested, *self.flat) if not (s in nested or s in flat)]
        return dict(sorted((nested | flat).items())), sorted(out)


def match(
    files: Iterable[tuple[str, File]], folder: str, suffix: str, *, leading: bool = False
) -> Matched:
    """The files in the folders that `folder` stands for whose names end in `suffix`, by stem.

    A stem is what each `ANY` stood for, and the path below the folder without `suffix`, with
    accents in one form (NFC): macOS writes them in another one than what made the label. `leading`:
    the folder may lie below others, as when an archive unpacks into its own name.
    """
    parts = [part for part in _composed(folder).split("/") if part not in ("", ".")]
    parts = [part for i, part in enumerate(parts) if part != ANY or parts[i - 1 : i] != [ANY]]
    middle = "".join("(?:(.+)/)?" if part == ANY else re.escape(part) + "/" for part in parts)
    start = "(?:.*/)?" if leading else ""
    # A name may hold a line break.
    pattern = re.compile(f"{start}{middle}(.+){re.escape(_composed(suffix))}", re.DOTALL)
    found = Matched({}, {})
    for name, file in files:
        if matched := pattern.fullmatch(unicodedata.normalize("NFC", name)):
            *between, rest = matched.groups()
            stem = "/".join(part for part in (*between, rest) if part)
            where = found.nested if any(between) else found.flat
            where.setdefault(stem, []).append(file)
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", as_text(name))
