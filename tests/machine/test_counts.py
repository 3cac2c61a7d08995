"""What small runs cost by counts that do not jitter: no more than when it was last looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import counts  # noqa: E402

BEFORE = {"tiny.py": {"flops": 1000, "compilations": 7}}


def counted():
    """The figures of now, of a process that compiled nothing before."""
    words = [sys.executable, counts.__file__, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_count_is_another_than_the_one_that_was_accepted():
    stored = json.loads(counts.FILE.read_text())
    if counts.key() not in stored:
        pytest.skip(f"no figures for this: {counts.key()}; there are {', '.join(stored) or 'none'}")
    now = counted()
    assert now["key"] == counts.key()
    assert not counts.complaint(stored[now["key"]], now["counts"])


def test_what_grew_is_named_with_its_share_and_the_command_that_accepts_it():
    now = {"tiny.py": {"flops": 1100, "compilations": 7}}
    said = counts.complaint(BEFORE, now)
    assert said.splitlines() == [
        "tiny.py: flops 1000 -> 1100 (+10.00%)",
        "To accept the change: python tests/machine/counts.py --write",
    ]
    assert counts.complaint(BEFORE, BEFORE) == ""


def test_more_compilations_are_named_and_fewer_are_not():
    more, fewer = ({"tiny.py": {"flops": 1000, "compilations": count}} for count in (8, 6))
    assert counts.changes(BEFORE, more) == ["tiny.py: compilations 7 -> 8 (+14.29%)"]
    assert counts.changes(BEFORE, fewer) == []


def test_runs_that_come_or_go_are_changes_too():
    found = counts.changes(BEFORE, {"other.py": {"flops": 1}})
    assert len(found) == 3
    assert "other.py: flops None -> 1" in found
    assert "tiny.py: flops 1000 -> None" in found


def test_one_more_product_is_seen():
    import jax
    import jax.numpy as jnp

    from mrm_jax.machine.estimate import flops

    def step(x, extra):
        y = x @ x
        return y @ x if extra else y

    x = jnp.ones((8, 8))
    found = [
        {"step": {"flops": flops(jax.make_jaxpr(step, static_argnums=1)(x, extra))}}
        for extra in (False, True)
    ]
    assert "+100.00%" in counts.complaint(*found)
