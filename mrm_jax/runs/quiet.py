"""Reading by Orbax without what it leaves behind where a file is damaged.

It reads all arrays at once in an event loop that it closes at the first error. What is under way
then ends a moment later, elsewhere, where Python can only print it: pages of tracebacks around the
one line that names the file.
"""

from __future__ import annotations

import gc
import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quietly() -> Iterator[None]:
    """Hears of the first error alone, which is raised."""
    hook = sys.unraisablehook
    if not isinstance(hook, _Deaf):
        sys.unraisablehook = _Deaf(hook)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold coroutines, which complain when
        with warnings.catch_warnings():  # they go: now, while nobody listens
            warnings.simplefilter("ignore")
            gc.collect()
        raise  # and the hook stays, for what ends later
    else:
        sys.unraisablehook = hook
        logging.getLogger("asyncio").setLevel(logging.NOTSET)


class _Deaf:
    """`sys.unraisablehook` but for reads that nobody waits for."""

    def __init__(self, before: Any):
        self.before = before

    def __call__(self, told: Any) -> None:
        late = "Event loop is closed" in str(told.exc_value)
        ours = inspect.iscoroutine(told.object) and "orbax" in told.object.cr_code.co_filename
        if not late and not ours:
            self.before(told)
