"""What an error that was raised while a checkpoint was read tells: that its files are damaged, or
that they could not be reached.
"""

from __future__ import annotations

import re
from pathlib import Path

from mrm_jax.paths import is_remote, of_bucket

GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_OF_CONTENT = (ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError)
"""What Orbax and TensorStore raise over files whose content is not theirs, besides `GONE`."""
_REFUSED = (
    r"RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|"
    r"CANCELLED|(?i:permission denied|operation not permitted|out of memory|too many open files|"
    r"input/output error|no space left)"
)
"""What TensorStore, whose errors are all ValueErrors, says where a file cannot be reached."""


def of_files(error: BaseException) -> bool:
    """Whether an error tells that files are damaged, and not that they could not be reached or
    held."""
    for one in _chain(error):
        refused = isinstance(one, OSError) and not isinstance(one, GONE)
        bucket = isinstance(one, Exception) and of_bucket(one)
        if refused or bucket or isinstance(one, MemoryError) or re.search(_REFUSED, str(one)):
            return False
    return isinstance(error, (*GONE, *_OF_CONTENT))


def named_damage(folder: Path, error: Exception) -> str:
    """What an error says, behind the file below `folder` that it or its cause names: "/FILE:
    TEXT"."""
    below = re.escape(str(folder if is_remote(folder) else folder.resolve()))
    for one in _chain(error):
        names = re.findall(rf'{below}/([^"\s]*[^"\s/])', str(one))
        if names and isinstance(one, Exception):
            return f"/{max(names, key=len)}: {one_line(one)}"
    return f": {one_line(error)}"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that it came of."""
    seen: list[BaseException] = []
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop(0)
        if one is not None and one not in seen:
            seen.append(one)
            rest += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return seen


def one_line(error: Exception) -> str:
    """What an error says, on one line that ends in a full stop."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return (text if len(text) < 300 else text[:297] + "...").rstrip(".") + "."
