"""How XLA compiles what hardly runs: most of the time of these tests is compiling."""

import os

import jax

QUICK: dict[str, bool | int] | None = None
"""For `jax.jit(compiler_options=)`. Not where numbers of the reference are compared with."""

if jax.default_backend() == "cpu":
    QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    if jax.__version_info__ < (0, 12):  # XLA's older way of writing loops, which is gone since
        QUICK["xla_cpu_use_fusion_emitters"] = False


def in_a_child() -> dict[str, str]:
    """The same for all that another process compiles: what its environment has besides."""
    flags = (f"--{name}={str(value).lower()}" for name, value in (QUICK or {}).items())
    return {"XLA_FLAGS": " ".join((os.environ.get("XLA_FLAGS", ""), *flags))}
