"""`options`: every declared option, and what is found by a word."""

import subprocess
import sys

import pytest

from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.main import run
from mrm_jax.options import declared

COLUMNS = (80, 160)


def listed(capsys, *words):
    assert run(["options", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", COLUMNS)
def test_every_option_is_listed_in_lines_that_fit(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = listed(capsys).splitlines()
    assert max(map(len, lines)) <= columns
    starts = {line.split()[0] for line in lines if line.strip()}
    assert set(declared(Config)) <= starts


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_line_says_default_unit_range_meaning_and_source(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    block = listed(capsys, "MIC.block")
    assert "method.mrm" not in block
    for word in ("method.mic.block", "empty", "px", "at least 1", "Side of a hidden block", "MIC:"):
        assert word in block
    ratio = listed(capsys, "method.mrm.ratio")
    for word in ("0.4", "0..1", "Share of tokens masked", "Source: paper: 0.4"):
        assert word in ratio
    assert "May differ when a run goes on." in listed(capsys, "log_every")
    assert "source_only" in listed(capsys, "method.kind")


def test_with_a_config_its_values_are_shown(capsys):
    assert "1500" in listed(capsys, "train.steps", "--config=configs/quickstart.py")


def test_a_word_that_no_option_holds_is_answered_with_a_near_name():
    with pytest.raises(UsageError, match=r"holds 'tempratur'\. Did you mean 'temperature'\?"):
        run(["options", "tempratur"])


def test_options_are_listed_without_jax():
    code = (
        "import sys; from mrm_jax.main import run; run(['options', 'ratio']); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
