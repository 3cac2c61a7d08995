"""Where files lie: on this machine, or in a bucket that etils.epath opens (gs://, s3://, az://).

The only place that turns a text into a path. What comes back has pathlib's methods either way.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrm_jax.children import passing_folder
from mrm_jax.options import UsageError

REMOTE = ("gs://", "s3://", "az://")
WITH_CHECKPOINTS = "gs://"
"""Where Orbax writes besides this machine's disks."""
_STATE = ("size", "md5Hash", "etag", "ETag", "mtime", "LastModified", "created")
"""What the packages call the facts that change with a file's content; each knows some of them."""
_PACKAGES = {"gcsfs", "s3fs", "adlfs", "google", "botocore", "azure", "aiohttp", "requests"}
"""What reaches buckets, and raises errors of its own."""


class PlaceError(UsageError, argparse.ArgumentTypeError):
    """A text that is no path of ours; argparse passes its line on."""


def located(text: str | os.PathLike[str]) -> Path:
    """The path that a user wrote; `~` is the home folder. Raises PlaceError for a bucket that no
    installed package opens, and for another address.
    """
    if is_remote(text):
        import fsspec
        from etils import epath

        scheme = os.fspath(text).partition("://")[0]
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            raise PlaceError(
                f"{text} lies in a bucket, for which a package is missing ({error}); for gs:// "
                "install mrm-jax[gcs]."
            ) from error
        bucket: Any = epath.Path(text)
        return bucket
    if re.match(r"\w\w+:/", os.fspath(text)):
        raise PlaceError(
            f"{text} is neither a path on this machine nor in a bucket, which begins with one of "
            f"{', '.join(REMOTE)}."
        )
    return Path(text).expanduser()


def local(text: str) -> Path:
    """`located`, for what has to lie on this machine. Raises PlaceError for a bucket."""
    if is_remote(text):
        raise PlaceError(
            f"{text} lies in a bucket; give a path on this machine, and copy the files there or "
            "back, say with gcloud storage cp -r."
        )
    return located(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(REMOTE)


def check_checkpoints(path: Path) -> None:
    """Raises PlaceError for a bucket in which Orbax has no checkpoints."""
    if is_remote(path) and not os.fspath(path).startswith(WITH_CHECKPOINTS):
        raise PlaceError(
            f"{path}: checkpoints lie in {WITH_CHECKPOINTS} or on this machine; give a folder "
            "there."
        )


def names_below(folder: Path) -> Iterator[str]:
    """Names of all files below a folder in a bucket, relative to it, by one listing of the
    bucket."""
    return (name for name, _ in states_below(folder))


def states_below(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, what changes with its content) of all files below a folder, as `names_below`."""
    import fsspec

    system, base = fsspec.url_to_fs(os.fspath(folder))
    for name, facts in system.find(base, detail=True).items():
        state = " ".join(str(facts.get(key)) for key in _STATE)
        yield name[len(base) :].lstrip("/"), state


@contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """The file on this machine: itself, or a copy for as long as the context is open, of which
    errors speak as of the file in the bucket."""
    if not is_remote(path):
        yield path
        return
    with passing_folder() as (folder, _):
        copy = folder / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        with renamed_in_errors(copy, path):
            yield copy


@contextmanager
def renamed_in_errors(here: Path, there: Path) -> Iterator[None]:
    """What is said of `here`, a copy, is said of `there`."""
    try:
        yield
    except Exception as error:
        error.args = tuple(
            said.replace(str(here), str(there)) if isinstance(said, str) else said
            for said in error.args
        )
        raise


def of_bucket(error: Exception) -> bool:
    """Whether an error was raised by a package that reaches buckets."""
    return type(error).__module__.partition(".")[0] in _PACKAGES


def what_is_wrong(error: Exception) -> str:
    """What an error of a disk or a bucket says, on one line without a full stop."""
    text = error.strerror if isinstance(error, OSError) else None
    kind = "" if text or type(error) is OSError else f"{type(error).__name__}: "
    return (kind + " ".join(str(text or error).split())).rstrip(".: ")
