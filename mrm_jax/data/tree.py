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
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from mrm_jax.config import UsageError
from mrm_jax.paths import is_remote, names_below

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


def walk(root: Path) -> Iterator[tuple[str, File]]:
    """(name, file) of every file below `root` that is not hidden, in no particular order."""
    if is_remote(root):
        for name in names_below(root):
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, root / name
        return
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


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
            raise UsageError(
                f"{field}: {archive} is no zip archive that can be read ({what}); fetch it again."
            ) from error
        for member in members:
            parts = PurePosixPath(member.filename).parts
            link = stat.S_ISLNK(member.external_attr >> 16)
            outside = ".." in parts or member.filename.startswith("/") or "\\" in member.filename
            hidden_end = "\0" in member.orig_filename  # names end there for zipfile
            if outside or link or hidden_end:
                what = "is a link" if link else "would lie outside of it"
                if hidden_end:
                    what = "has a name with a NUL byte"
                raise UsageError(
                    f"{field}: the member {member.orig_filename!r} of {archive} {what}; such "
                    "an archive is refused. Fetch it from its official source."
                )
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
            if not member.is_dir() and not hidden:
                yield member.filename, Member(archive, member.filename)


def match(
    files: Iterable[tuple[str, File]], folder: str, suffix: str, *, leading: bool = False
) -> dict[str, list[File]]:
    """Stem to its files, sorted by stem, of the files in the folders that `folder` stands for and
    whose names end in `suffix`.

    A stem is what `ANY` stood for, and the path below the folder without `suffix`. Where some files
    lie in `folder` with nothing in place of `ANY`, only these count: the set has been flattened
    there. `leading`: the folder may lie below others, as when an archive unpacks into its own name.
    """
    start = "(?:.*/)?" if leading else ""
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    middle = "".join("(?:(?P<any>.+)/)?" if p == ANY else re.escape(p) + "/" for p in parts)
    pattern = re.compile(f"{start}{middle}(?P<rest>.+){re.escape(suffix)}", re.DOTALL)
    found: dict[str, list[File]] = {}
    flat: dict[str, list[File]] = {}
    for name, file in files:
        matched = pattern.fullmatch(name)
        if matched:
            groups = matched.groupdict()
            stem = f"{groups['any']}/{groups['rest']}" if groups.get("any") else groups["rest"]
            found.setdefault(stem, []).append(file)
            if not groups.get("any"):
                flat.setdefault(stem, []).append(file)
    return dict(sorted((flat or found).items()))
