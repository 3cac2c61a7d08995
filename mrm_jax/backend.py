"""What JAX raises where it finds no device to run on, as a line for people. Loads no jax."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator

from mrm_jax.errors import RunError, UsageError

VARIABLE = "JAX_PLATFORMS"
"""Environment variable that names the kinds of device that JAX may start on."""

NEEDED = {"cuda": "jax[cuda12]", "gpu": "jax[cuda12]", "tpu": "jax[tpu]"}
"""Kind of device -> the package that JAX drives it by."""

_STARTS_IN = os.path.join("jax", "_src", "xla_bridge.py")
LONGEST = 300


def device_refusal(error: BaseException) -> UsageError | RunError | None:
    """The line for an error that was raised, or caused by one raised, while JAX looked for its
    devices; None for any other. A UsageError where JAX_PLATFORMS asks for what is not there."""
    starts = next((one for one in _causes(error) if _of_start(one)), None)
    if starts is None:
        return None
    said = r"\(set JAX_PLATFORMS='' .*?\)|Unable to initialize backend '\w*':"
    why = re.sub(said, "", str(starts))
    why = " ".join(why.split())[:LONGEST].rstrip(".")
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return RunError(f"JAX cannot start on this machine: {why or type(starts).__name__}.")
    packages = dict.fromkeys(NEEDED[name] for name in wanted.split(",") if name in NEEDED)
    install = f", or install what it needs: pip install '{' '.join(packages)}'" if packages else ""
    return UsageError.of(
        VARIABLE,
        wanted,
        f", and JAX cannot use such a device here{f' ({why})' if why else ''}",
        f"unset it{install}.",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        ours = isinstance(error, UsageError | RunError)
        error = error.__cause__ or (None if ours else error.__context__)


def _of_start(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(frame.filename.endswith(_STARTS_IN) for frame in frames[-3:])
