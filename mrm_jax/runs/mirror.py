"""A run's folder in a bucket: its small files are kept on this machine and brought there.

A bucket cannot append to a file, so metrics.jsonl, TensorBoard's events, panels and the report are
written into a folder here and uploaded when the run saves, evaluates or ends. The checkpoints
themselves go straight to the bucket (Orbax).

Nothing holds a folder in a bucket: two runs at once in one of them would not notice each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrm_jax.children import passing_folder
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import (
    PlaceError,
    below,
    check_checkpoints,
    names_below,
    renamed_in_errors,
    what_is_wrong,
)
from mrm_jax.runs.workdir import FROZEN, PROFILE, TRACKED
from mrm_jax.stop import before_end

CHECKPOINTS = "checkpoints"


class Mirror:
    """`local` holds the small files of the run in `remote`, to which they are brought unless it is
    another host's to write (`keep` False).
    """

    def __init__(self, remote: Path, local: Path, *, keep: bool = True) -> None:
        self.remote, self.local, self._keep = remote, local, keep
        self._sent: dict[str, tuple[int, int] | None] = {}

    def pull(self, only: str = "") -> None:
        """Brings the small files here, or those of one folder of the run; of a checkpoint, its
        name. Raises UsageError where they cannot be read, or have names that lead elsewhere."""
        try:
            for name in names_below(self.remote):
                folder, _, rest = name.partition("/")
                if only not in ("", folder) or folder in (PROFILE, TRACKED):
                    continue
                if folder == CHECKPOINTS:  # by which a folder is known to hold a run
                    kept = below(self.local, f"{folder}/{rest.partition('/')[0]}")
                    kept.mkdir(parents=True, exist_ok=True)
                else:
                    path = below(self.local, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(below(self.remote, name).read_bytes())
                    self._sent[name] = _state(path)
        except PlaceError as error:
            raise PlaceError.at(self.remote, f" is not the folder of a run: {error}") from error
        except FileNotFoundError:
            pass  # a new folder
        except Exception as error:  # buckets raise many unrelated types
            raise UsageError.at(self.remote, f" cannot be read: {what_is_wrong(error)}.") from error

    def check_writable(self) -> None:
        """Raises UsageError where nothing can be written there."""
        try:
            probe = self.remote / f".probe-{uuid.uuid4().hex}"
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except Exception as error:
            raise UsageError.at(
                self.remote, f" cannot be written: {what_is_wrong(error)}."
            ) from error

    def push(self, own: str = "") -> None:
        """Brings what has changed there; of a host that keeps nothing, the files of the folder
        `own` alone. Raises RunError where it cannot be written."""
        if not (self._keep or own):
            return
        for path in sorted((self.local if self._keep else self.local / own).rglob("*")):
            name = path.relative_to(self.local).as_posix()
            state = None if path.is_dir() or path.name.startswith(".") else _state(path)
            if state in (None, self._sent.get(name)):
                continue
            try:
                target = self.remote / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            except Exception as error:  # as in pull
                raise RunError.at(
                    self.remote / name, f" cannot be written: {what_is_wrong(error)}."
                ) from error
            self._sent[name] = state


def _state(path: Path) -> tuple[int, int] | None:
    """None for a file that is gone: a tracker's process takes its own away."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def following(remote: Path) -> Iterator[Mirror]:
    """What a host other than the first has of the run's folder, for as long as the context is open:
    a folder of its own, which goes when it closes, with the run's frozen encoder if there is one.
    """
    with passing_folder() as (folder, _):
        mirror = Mirror(remote, folder, keep=False)
        mirror.pull(FROZEN)
        with renamed_in_errors(mirror.local, remote):
            yield mirror


@contextmanager
def mirrored(remote: Path) -> Iterator[Mirror]:
    """A mirror of a run's folder in a bucket, for as long as the context is open; what is new in it
    is brought there at the end, or else stays here.

    Raises UsageError for a bucket that holds no checkpoints, cannot be read or cannot be written;
    RunError where the end of a run could not be brought there.
    """
    check_checkpoints(remote)
    with passing_folder() as (place, keep):
        mirror = Mirror(remote, below(place, remote.name))
        mirror.local.mkdir()
        mirror.pull()
        mirror.check_writable()
        with renamed_in_errors(mirror.local, remote):
            try:
                with before_end(lambda: _last_push(mirror, place, keep)):
                    yield mirror
            except BaseException:
                try:
                    _last_push(mirror, place, keep)
                except RunError as second:  # the first error is the one to raise
                    print(second)
                raise
            _last_push(mirror, place, keep)


def _last_push(mirror: Mirror, place: Path, keep: Callable[[], None]) -> None:
    try:
        mirror.push()
    except RunError as error:
        keep()
        raise RunError(
            f"{error}",
            f"What the bucket lacks is in {place}.",
            field=error.field,
            value=error.value,
        ) from error
