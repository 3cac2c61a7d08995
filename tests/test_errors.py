"""Errors for people: their line is made of the parts that code reads."""

import pickle
from pathlib import Path

import pytest

from mrm_jax.data.files import SizesError, UnreadableError
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import PlaceError
from mrm_jax.runs.saved import DamagedError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("it is cut off", "fetch it again."), "it is cut off; fetch it again."),
        (UsageError("It is cut off.", "Fetch it."), "It is cut off. Fetch it."),
        (UsageError("train needs a config:", "add one."), "train needs a config: add one."),
        (
            UsageError.of("config.a", 3, ", which is odd", "use 2."),
            "config.a is 3, which is odd; use 2.",
        ),
        (UsageError.of("config.a", "x", "", "give a number."), "config.a is 'x'; give a number."),
        (UsageError.at(Path("a.png"), " is empty", "fetch it."), "a.png is empty; fetch it."),
        (
            RunError.at("--to", " is a file", "give a folder.", "a"),
            "--to a is a file; give a folder.",
        ),
    ],
)
def test_the_line_is_the_fault_and_then_the_way_out(error, line):
    assert str(error) == line
    assert line.endswith(error.way_out)


@pytest.mark.parametrize("kind", [UsageError, RunError, PlaceError, UnreadableError, SizesError])
def test_an_error_arrives_in_another_process_with_its_type_line_and_parts(kind):
    error = kind.of("config.a", 3, ", which is odd", "use 2.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    assert (again.field, again.value, again.way_out) == ("config.a", 3, "use 2.")


def test_an_error_that_is_made_of_other_parts_travels_too(tmp_path):
    error = DamagedError(tmp_path / "3", "student is not there")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (DamagedError, str(error))
    assert again.field == str(tmp_path / "3")
