"""A file of the Hugging Face hub, by huggingface_hub: an answer in one line where there is none."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.paths import refusal, what_is_wrong

FORM = "hf://ORG/NAME[/FILE][@REVISION]"
USUAL = ("model.safetensors", "pytorch_model.bin")
"""Where a repository keeps the weights of one model; the first that is there is taken."""
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".npz")


class HubPlace(NamedTuple):
    """ORG/NAME, a file in it or None for the usual one, and a revision or None for the newest."""

    repository: str
    file: str | None
    revision: str | None


def parsed_hub_name(text: str) -> HubPlace:
    """The parts of `hf://ORG/NAME[/FILE][@REVISION]`; UsageError for another form."""
    rest, at, revision = text.removeprefix("hf://").partition("@")
    repository, file = "/".join(rest.split("/")[:2]), "/".join(rest.split("/")[2:])
    if (
        not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII)
        or (at and not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII))
        or (rest != repository and refusal(file) is not None)
    ):
        raise UsageError.at(text, f" does not have the form {FORM}.")
    return HubPlace(repository, file or None, revision or None)


def download(text: str, place: HubPlace) -> tuple[Path, str]:
    """The file in the hub's cache, downloaded where it is not there yet, and the revision (40 hex
    digits) that it is of. Raises UsageError, which begins with `text`."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise UsageError.at(
            text,
            " is on the Hugging Face hub and huggingface_hub is not installed: pip install "
            "huggingface_hub, or download the file and give its path.",
        ) from error
    names = (place.file,) if place.file else USUAL
    unreached: Exception | None = None
    for name in names:
        try:
            found = hub.hf_hub_download(
                *(place.repository, name),
                revision=place.revision,
                local_files_only=unreached is not None,  # it is tried for half a minute
            )
            path = Path(found)
            return path, _revision(path)
        except errors.LocalEntryNotFoundError as error:  # the hub was not asked, or not reached
            unreached = unreached or error
        except errors.EntryNotFoundError:
            pass
        except Exception as error:
            raise UsageError.at(text, *_answer(error, errors, place)) from error
    if unreached is not None:
        cause = unreached.__cause__
        why = what_is_wrong(cause if isinstance(cause, Exception) else unreached)[:200]
        raise UsageError.at(
            text,
            f": the hub was not reached ({why}) and its cache has no {' nor '.join(names)} of it",
            "ask again with the network and without HF_HUB_OFFLINE, set HF_ENDPOINT to a mirror, "
            "or download the file elsewhere and give its path.",
        ) from unreached
    raise UsageError.at(text, f" has no {' nor '.join(names)}", _others(hub, place))


def _revision(path: Path) -> str:
    """The cache keeps a file as .../snapshots/REVISION/FILE. Source: huggingface_hub's guide to its
    cache."""
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index("snapshots")
    return parts[at + 1]


def _answer(error: Exception, errors: Any, place: HubPlace) -> tuple[str, str]:
    """What is wrong and the way out, of what the hub answered."""
    if isinstance(error, errors.GatedRepoError):
        return (
            ": its authors ask to be asked for it (a gated model)",
            f"accept its terms at https://huggingface.co/{place.repository}, then 'hf auth login' "
            "or set HF_TOKEN.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            " is not on the hub, or private",
            "look at its name; for a private model 'hf auth login' or set HF_TOKEN.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (f": the hub has no revision {place.revision} of it", "leave out @REVISION.")
    why = what_is_wrong(error)[:200]
    return (f" cannot be downloaded: {why}", "ask again, or give a file's path.")


def _others(hub: Any, place: HubPlace) -> str:
    """The files of weights that the repository has."""
    try:
        names = hub.HfApi().list_repo_files(place.repository, revision=place.revision)
    except Exception:
        return f"look at its files and name one: {FORM}."
    found = [name for name in names if name.endswith(ENDINGS)]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"its files of weights: {', '.join(found[:5]) or 'none'}{more}; name one: {FORM}."
