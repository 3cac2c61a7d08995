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
from mrm_jax.types import RunError

CHECKPOINTS = "checkpoints"


class Mirror:
    """`local` holds the small files of the run in `remote`."""

    def __init__(self, remote: Path, local: Path) -> None:
        self.remote, self.local = remote, local
        self._sent: dict[str, tuple[int, int]] = {}

    def pull(self) -> None:
        """Brings the small files here. Raises UsageError where the bucket cannot be read."""
        try:
            for name in names_below(self.remote):
                if name.partition("/")[0] == CHECKPOINTS or not name:
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
        for path in sorted(self.local.rglob("*")):
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
