"""What a test asks of an error for people: its parts, not its wording."""

from contextlib import contextmanager

import pytest

from mrm_jax.errors import UsageError


@contextmanager
def refused(field, value=None, *, way_out="", kind=UsageError):
    """As `pytest.raises`, of an error about `field`, its value if one is given, whose way out
    holds the text `way_out`."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert error.field == str(field), error
    assert value is None or error.value == value, error
    assert way_out in error.way_out, error
    assert str(error).endswith(error.way_out)
    assert "\n" not in str(error)
