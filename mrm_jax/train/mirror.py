"""A run's folder in a bucket: its small files are kept on this machine and brought there.

A bucket cannot append to a file, so metrics.jsonl, TensorBoard's events, panels and the report are
written into a folder here and uploaded when the run writes checkpoints, evaluates or ends. The
checkpoints themselves go straight to the bucket (Orbax).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrm_jax.config import UsageError
from mrm_jax.paths import names_below
from mrm_jax.train.workdir import FROZEN
from mrm_jax.types import RunError

CHECKPOINTS = "checkpoints"


class Mirror:
    """`local` holds the small files of the run in `remote`, to which they are brought unless it is
    another host's to write (`keep` False).
    """

    def __init__(self, remote: Path, local: Path, *, keep: bool = True) -> None:
        self.remote, self.local, self._keep = remote, local, keep
        self._sent: dict[str, tuple[int, int]] = {}

    def pull(self, folder: str = "") -> None:
        """Brings the small files here, or those of one folder of the run. Raises UsageError where
        they cannot be read.
        """
        try:
            for name in names_below(self.remote):
                first = name.partition("/")[0]
                if first == CHECKPOINTS or not name or folder not in ("", first):
                    continue
                path = self.local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((self.remote / name).read_bytes())
                self._sent[name] = _state(path)
        except FileNotFoundError:
            return
        except Exception as error:  # buckets raise many unrelated types
            raise UsageError(f"{self.remote} cannot be read: {_line(error)}") from error

    def push(self) -> None:
        """Brings what has changed there. Raises RunError where it cannot be written."""
        for path in sorted(self.local.rglob("*")) if self._keep else ():
            name = path.relative_to(self.local).as_posix()
            if path.is_dir() or path.name.startswith(".") or self._sent.get(name) == _state(path):
                continue
            state = _state(path)
            try:
                target = self.remote / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            except Exception as error:  # as in pull
                raise RunError(f"{self.remote / name} cannot be written: {_line(error)}") from error
            self._sent[name] = state


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def following(remote: Path) -> Iterator[Mirror]:
    """What a host other than the first has of the run's folder, for as long as the context is open:
    a folder of its own, which goes when it closes, with the run's frozen encoder if there is one.
    """
    with tempfile.TemporaryDirectory(prefix="mrm_jax_") as folder:
        mirror = Mirror(remote, Path(folder), keep=False)
        mirror.pull(FROZEN)
        yield mirror


@contextmanager
def mirrored(remote: Path) -> Iterator[Mirror]:
    """A mirror of a run's folder in a bucket, for as long as the context is open; what is new in it
    is brought there at the end.
    """
    with tempfile.TemporaryDirectory(prefix="mrm_jax_") as folder:
        mirror = Mirror(remote, Path(folder))
        mirror.pull()
        try:
            yield mirror
        except BaseException:
            with suppress(RunError):  # the first error is the one to report
                mirror.push()
            raise
        mirror.push()
