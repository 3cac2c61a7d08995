"""PyTorch's weights, in and out: the names that the rest of the package and its users call."""

from mrm_jax.convert.complete import synthesise
from mrm_jax.convert.matching import SeveralError, detect
from mrm_jax.convert.rebuilder import position_table
from mrm_jax.convert.states import (
    Misfit,
    Trace,
    describe,
    export_torch,
    import_torch,
    leaves,
    trace,
)
from mrm_jax.convert.tables import KINDS

__all__ = ["KINDS", "Misfit", "SeveralError", "Trace", "describe", "detect", "export_torch"]
__all__ += ["import_torch", "leaves", "position_table", "synthesise", "trace"]
