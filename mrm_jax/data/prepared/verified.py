"""Whether the shards of a prepared set are those that were prepared: at once by their index, and in
the background, once on each machine, by all of their bytes.

A record stands in a chunk, whose head of 40 bytes holds a hash of what follows; the last chunk is
the index of the others. The heads of some records and of the index tell a shard from every other
one and are read in no time; what is damaged between them, reading a record finds by its hash.
Source: the file format of Riegeli/records, on which ArrayRecord is built.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mrm_jax.data.prepared.manifest import AGAIN, PreparedSplit, Shard
from mrm_jax.errors import RunError, UsageError

BLOCK, BLOCK_HEAD = 65536, 24  # bytes: every so many, a head of the block interrupts the chunks
HEAD = 40  # bytes of a chunk's head: two hashes, sizes and counts
HEADS = 16
"""Records of a shard whose heads are looked at when it is opened, spread evenly."""
PIECE = 2**22  # bytes that are hashed in one go
SHARE = 0.2  # of a core at most, for hashing in the background
log = logging.getLogger(__name__)


def _head(file: BinaryIO, place: int) -> bytes:
    """The head at `place`, which counts bytes of chunks alone."""
    block, within = divmod(place, BLOCK - BLOCK_HEAD)
    file.seek(block * BLOCK + BLOCK_HEAD + within)
    left = BLOCK - BLOCK_HEAD - within
    if left >= HEAD:
        return file.read(HEAD)
    content = file.read(HEAD + BLOCK_HEAD)
    return content[:left] + content[left + BLOCK_HEAD :]


def places(path: Path, count: int) -> tuple[int, ...]:
    """Where the heads of `HEADS` of a shard's `count` records and that of its index stand."""
    found, at = [], HEAD  # behind the chunk that opens the file
    with path.open("rb") as file:
        for _ in range(count + 1):
            found.append(at)
            at += HEAD + int.from_bytes(_head(file, at)[8:16], "little")
    chosen = sorted({i * (count - 1) // (HEADS - 1) for i in range(HEADS)}) if count else []
    return (*(found[i] for i in chosen), found[-1])


def heads_digest(path: Path, where: Sequence[int]) -> str:
    """A digest, in hex, of the heads that stand at these places; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for place in where:
            digest.update(_head(file, place))
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copied(source: Path, target: Path) -> str:
    """Copies a file; returns the SHA-256 of what was read, in hex."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(PIECE):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def misplaced(path: Path, shard: Shard, split: PreparedSplit) -> str | None:
    """What shows at once that a file is not the shard that was prepared; None where nothing does,
    and where the manifest does not say enough. Raises OSError."""
    if shard.size is None or shard.index is None:
        return None
    size = path.stat().st_size
    if size != shard.size:
        return f"{path} has {size} bytes, the manifest says {shard.size}"
    if heads_digest(path, shard.places) == shard.index:
        return None
    for other in split.shards:
        if (
            other is not shard
            and other.size == size
            and heads_digest(path, other.places) == other.index
        ):
            return f"{path} holds the content of {other.file}"
    return f"{path} holds other records than the manifest says"


def check_unchanged(paths: Sequence[Path], split: PreparedSplit, *, field: str) -> None:
    """Raises UsageError where a file of a split that is opened is not the one that was prepared,
    as far as `misplaced` shows; of older sets, where it holds another number of records, and a line
    says so unless all of it was hashed before."""
    for path, shard in zip(paths, split.shards, strict=True):
        try:
            wrong = misplaced(path, shard, split) or _miscounted(path, shard)
        except OSError as error:
            wrong = f"{path} cannot be read ({error.strerror})"
        if wrong:
            raise UsageError.at(field, f": {wrong}; {AGAIN}.")
    pairs = zip(paths, split.shards, strict=True)
    if any(shard.index is None and not _stamped(path, shard) for path, shard in pairs):
        log.warning(
            "%s: %s was prepared without digests of its index, so it is not verified whether its "
            "files are in their places; check reads all of them.",
            field,
            paths[0].parent,
        )


def _miscounted(path: Path, shard: Shard) -> str | None:
    if shard.index is not None:  # which covers the number
        return None
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue] - compiled
    )

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError as error:
        return f"{path} cannot be read as records ({' '.join(str(error).split())})"
    return None if count == shard.count else f"{path} holds {count} records, not {shard.count}"


def cache() -> Path:
    """The user's cache folder, which need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "mrm_jax"


def _stamp(path: Path, shard: Shard) -> Path:
    """The file that says that all bytes of a shard were hashed on this machine and are right, for
    as long as its size and time of change stay."""
    state = path.stat()
    facts = (os.path.realpath(path), state.st_size, state.st_mtime_ns, shard.sha256)
    return cache() / "verified" / hashlib.sha256(repr(facts).encode("utf-8", "replace")).hexdigest()


def stamp(path: Path, shard: Shard) -> None:
    """Notes that all of a shard was found right; nothing where the cache cannot be written."""
    try:
        file = _stamp(path, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError:
        log.debug("no stamp for %s", path)


def _stamped(path: Path, shard: Shard) -> bool:
    try:
        return _stamp(path, shard).is_file()
    except OSError:
        return False


class Held(NamedTuple):
    """The file of a shard that is in use; `stops`: a fault in it ends a run."""

    path: Path
    shard: Shard
    stops: bool


class ShardWatch:
    """Hashes whole shards in a thread of its own while others train, those that have no stamp.

    The thread takes a fifth of a core at the lowest priority and ends with the process. Of several
    processes on a machine one hashes at a time, and finds the stamps of those before it. A fault is
    logged, and raised by `check_unchanged` where it is to end the run.
    """

    def __init__(self, shards: Iterable[Held]) -> None:
        self._left = [held for held in dict.fromkeys(shards) if not _stamped(held.path, held.shard)]
        self._wrong: RunError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="verify shards")
        if self._left:
            self._thread.start()

    def check(self) -> None:
        """Raises RunError where a shard that `stops` has been found wrong by now."""
        if self._wrong:
            raise self._wrong

    def join(self) -> None:
        """Waits until all are hashed."""
        if self._left:
            self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # where it is the thread's own priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with _alone():
            for path, shard, stops in self._left:
                try:
                    if _stamped(path, shard):
                        continue
                    digest = _slowly(path)
                except OSError:  # the set was removed, or reading says so itself
                    return
                if digest != shard.sha256:
                    wrong = RunError.at(
                        path,
                        ": its SHA-256 is not the manifest's, so some pictures that were read "
                        "since the start may be wrong ones",
                        f"{AGAIN}.",
                    )
                    log.error("%s", wrong)
                    self._wrong = self._wrong or (wrong if stops else None)
                    continue
                stamp(path, shard)


def _slowly(path: Path) -> str:
    """`sha256`, with pauses."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        began = time.monotonic()
        while piece := file.read(PIECE):
            digest.update(piece)
            del piece
            time.sleep((time.monotonic() - began) * (1 / SHARE - 1))
            began = time.monotonic()
    return digest.hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """Waits for other processes of this machine; not where locks cannot be had."""
    import fcntl

    try:
        folder = cache() / "verified"
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            log.debug("no lock in %s", folder)
        yield
