"""What a run does besides learning."""

from __future__ import annotations

from mrm_jax.checks.require import require_value
from mrm_jax.config import Config, profiled


def check_profile(config: Config) -> None:
    """Raises UsageError: steps to trace that are none, or none of the run's."""
    text, steps = config.train.profile, config.train.steps
    if text is None:
        return
    span, field = profiled(config), "config.train.profile"
    require_value(
        bool(span),
        field,
        text,
        "",
        "write START:STOP, the first and the last step to trace, counted from 1, such as 100:105.",
    )
    assert span
    require_value(
        span[0] <= steps,
        field,
        text,
        f", but the run has {steps} steps (config.train.steps)",
        f"begin at one of them, say {max(steps - 5, 1)}:{steps}.",
    )
