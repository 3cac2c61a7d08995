"""Where files lie: on this machine, or in a bucket that etils.epath opens (gs://, s3://, az://).

The only place that turns a text into a path. What comes back has pathlib's methods either way.

A path that a user writes goes anywhere (`located`). A name that comes from elsewhere, such as a
manifest, an archive, a bucket's listing or a run's records, lies below a folder or is refused
(`below`); tests/test_names.py finds joins that ask nobody. Files are replaced by a rename
(`replaced`), so that none is ever half written, and a link in their place is not written through.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mrm_jax.children import passing_folder
from mrm_jax.errors import UsageError

REMOTE = ("gs://", "s3://", "az://")
WITH_CHECKPOINTS = "gs://"
"""Where Orbax writes besides this machine's disks."""
_STATE = ("size", "md5Hash", "etag", "ETag", "mtime", "LastModified", "created")
"""What the packages call the facts that change with a file's content; each knows some of them."""
_PACKAGES = {"gcsfs", "s3fs", "adlfs", "google", "botocore", "azure", "aiohttp", "requests"}
"""What reaches buckets, and raises errors of its own."""
_OUTSIDE = "would lie outside of it"
LONGEST = 255
"""Bytes of a name, without its folder, that usual file systems take."""


class PlaceError(UsageError, argparse.ArgumentTypeError):
    """A text that is no path of ours; argparse passes its line on."""


def located(text: str | os.PathLike[str]) -> Path:
    """The path that a user wrote; `~` is the home folder. Raises PlaceError for a bucket that no
    installed package opens, for an address on the web, and for any other.
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
                "install gcsfs."
            ) from error
        bucket: Any = epath.Path(text)
        return bucket
    if re.match(r"(?i)(?:https?|s?ftps?)://", os.fspath(text)):
        way_out = "download it first, and name the file or folder here."
        raise PlaceError.at(text, " is an address on the web, from which nothing is read", way_out)
    if re.match(r"\w\w+:/", os.fspath(text)):
        raise PlaceError(
            f"{text} is neither a path on this machine nor in a bucket, which begins with one of "
            f"{', '.join(REMOTE)}."
        )
    return Path(as_path(os.fspath(text))).expanduser()


def local(text: str) -> Path:
    """`located`, for what has to lie on this machine. Raises PlaceError for a bucket."""
    if is_remote(text):
        raise PlaceError(
            f"{text} lies in a bucket",
            "give a path on this machine, and copy the files there or back, say with gcloud "
            "storage cp -r.",
        )
    return located(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(REMOTE)


def check_checkpoints(path: Path) -> None:
    """Raises PlaceError for a bucket in which Orbax has no checkpoints."""
    if is_remote(path) and not os.fspath(path).startswith(WITH_CHECKPOINTS):
        raise PlaceError.at(
            path,
            f": checkpoints lie in {WITH_CHECKPOINTS} or on this machine",
            "give a folder there.",
        )


def refusal(name: object) -> str | None:
    """Why `name` is none of a file below a folder, or None where it is one: plain parts with
    forward slashes between them, the same on every system."""
    if not isinstance(name, str):
        return "is no text"
    parts = name.split("/")
    if not name:
        return "is empty"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "holds a control character"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return _OUTSIDE
    if "\\" in name or ".." in parts:  # a backslash is a slash on some systems
        return _OUTSIDE
    if "" in parts or "." in parts:
        return "has an empty part"  # "a//b" is "a/b" on disk: two names would share a file
    try:
        longest = max(len(part.encode("utf-8", "surrogateescape")) for part in parts)
    except UnicodeEncodeError:
        return "is no text"
    return f"has a part of more than {LONGEST} bytes" if longest > LONGEST else None


def below(folder: Path, name: object) -> Path:
    """The path of `name`, which comes from elsewhere, below `folder`.

    Raises PlaceError, which names both, for a name that is none below a folder (`refusal`), and for
    one that leads out of it by a link that lies there. The file itself may be a link: it is read,
    as data sets are linked together from several disks, and replaced (`replaced`), never written.
    """
    why = refusal(name)
    if why is None:
        path = folder / as_path(str(name))
        if is_remote(folder) or path.parent == folder:
            return path
        try:
            if path.parent.resolve().is_relative_to(folder.resolve()):
                return path
            why = f"{_OUTSIDE}, by a link there"
        except (OSError, RuntimeError):  # a loop of links
            why = "leads into a loop of links"
    said = repr(name) if len(repr(name)) < 200 else f"{repr(name)[:197]}..."
    raise PlaceError.at(folder, f": the name {said} {why}; a file of that name is refused.")


def as_text(name: str) -> str:
    """A file's name as the system gives it, as text. The same where Python reads names as UTF-8; of
    a name that is none, the odd bytes stay as lone surrogates, which JSON keeps."""
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # text already, in a locale that cannot say it
        return name


def as_path(name: str) -> str:
    """The inverse of `as_text`: text as the system wants it (another one under LC_ALL=C)."""
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return name


def letter_bytes(letter: str) -> bytes:
    """The bytes behind one letter of `as_text`."""
    byte = ord(letter) - 0xDC00  # how Python keeps a byte that is no text
    return bytes([byte]) if 0x80 <= byte <= 0xFF else letter.encode("utf-8", "surrogatepass")


def shown(text: object) -> str:
    """A text for people, on one line: line breaks, other control characters and bytes that are no
    text as backslash escapes."""
    plain, odd = str(text), ("Cc", "Cs", "Zl", "Zp")
    with suppress(UnicodeEncodeError):
        plain = plain.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in odd else c for c in plain)


def result_name(name: str, *, spare: int = 0, longest: int = LONGEST) -> str:
    """`name`, of a picture as a file system gave it, for the files that are made of it.

    Bytes that are no text, control characters, backslashes and what looks like a drive become %XX;
    a part of more than `longest` bytes with `spare` more behind it is cut and gets a digest.
    """

    def escaped(letter: str) -> str:
        return "".join(f"%{byte:02X}" for byte in letter_bytes(letter))

    plain = "".join(
        escaped(letter)
        if unicodedata.category(letter) in ("Cc", "Cs") or letter == "\\"
        else letter
        for letter in as_text(as_path(name))
    )
    plain = re.sub("^([A-Za-z]):", r"\1%3A", plain)
    return "/".join(_cut(part, max(longest - spare, 32)) for part in plain.split("/"))


def _cut(part: str, longest: int) -> str:
    content = part.encode()
    if len(content) <= longest:
        return part
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{content[: longest - 13].decode('utf-8', 'ignore')}~{digest}"


def longest_name(folder: Path) -> int:
    """How many bytes a name in `folder`, which may not be there yet, can have."""
    there = next((f for f in (folder, *folder.parents) if not is_remote(f) and f.exists()), None)
    try:
        return os.pathconf(there, "PC_NAME_MAX") if there else LONGEST
    except (OSError, ValueError):
        return LONGEST


def same_file(name: str) -> str:
    """What is equal of two names that some file system takes for one: without case, accents in one
    form."""
    return unicodedata.normalize("NFC", name).casefold()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to, which takes its place when the context closes without
    an error; in a bucket `path` itself, where files appear whole.

    Raises OSError. A link at `path` is replaced, not followed, and nothing can wait at the new
    file's name, which is drawn.
    """
    if is_remote(path):
        yield path
        return
    new = path.with_name(f".new-{uuid.uuid4().hex}")  # short: `path`'s name may be a longest one
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write to, which is `path` once the context closes without an
    error; until then there is none, or an empty one. Raises OSError."""
    new = path.with_name(f".new-{uuid.uuid4().hex}")
    new.mkdir(parents=True)
    try:
        yield new
        if path.is_dir():
            path.rmdir()
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one move. Raises OSError."""
    with replaced(path) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` as UTF-8 in one move, what is no text as backslash escapes. Raises
    OSError."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


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
        rest = name[len(base) :].removeprefix("/")
        if rest and not rest.endswith("/"):  # what a console puts where a folder is made
            yield rest, state


def sizes_below(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of all files below a folder in a bucket, as `names_below`."""
    import fsspec

    system, base = fsspec.url_to_fs(os.fspath(folder))
    for name, facts in system.find(base, detail=True).items():
        yield name[len(base) :].removeprefix("/"), int(facts["size"] or 0)


@contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """The file on this machine: itself, or a copy for as long as the context is open, of which
    errors speak as of the file in the bucket."""
    if not is_remote(path):
        yield path
        return
    with passing_folder() as (folder, _):
        copy = below(folder, path.name)
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
