"""Where files lie: on this machine, or in a bucket that etils.epath opens (gs://, s3://, az://).

The only place that turns a text into a path. What comes back has pathlib's methods either way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrm_jax.options import UsageError

REMOTE = ("gs://", "s3://", "az://")


def located(text: str | os.PathLike[str]) -> Path:
    """The path that a user wrote; `~` is the home folder. Raises UsageError for a bucket that no
    installed package opens.
    """
    if is_remote(text):
        import fsspec
        from etils import epath

        scheme = os.fspath(text).partition("://")[0]
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            raise UsageError(
                f"{text} lies in a bucket, for which a package is missing ({error}); for gs:// "
                "install mrm-jax[gcs]."
            ) from error
        bucket: Any = epath.Path(text)
        return bucket
    return Path(text).expanduser()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(REMOTE)


def names_below(folder: Path) -> Iterator[str]:
    """Names of all files below a folder in a bucket, relative to it, by one listing of the
    bucket."""
    import fsspec

    system, base = fsspec.url_to_fs(os.fspath(folder))
    for name in system.find(base):
        yield name[len(base) :].lstrip("/")
