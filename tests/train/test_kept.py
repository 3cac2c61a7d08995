"""A start after the first neither traces nor compiles its step, and never takes a wrong one."""

import dataclasses
import random
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import standin
import toy_run

from mrm_jax import rngs, sharding
from mrm_jax.main import load_config
from mrm_jax.registry import DECODER_KINDS
from mrm_jax.train import kept
from mrm_jax.train.programs import GO_ON, Fed, Programs

CONFIG: Any = load_config([f"--config={toy_run.TINY}"])


@pytest.fixture
def steps(tmp_path, monkeypatch):
    folder, shortest = tmp_path / "steps", "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.setattr(kept, "folder", lambda: folder)
    before = jax.config.values[shortest]
    jax.config.update(shortest, 0.0)
    yield folder
    jax.config.update(shortest, before)


def started(config=CONFIG, traced=None):
    """A process's start: the step, and what it makes of its arguments."""
    mesh = sharding.run_mesh(config)
    program = toy_run.program(config)
    key = jax.random.key_data(rngs.root(config.seed))
    train_step = program.train_step

    def step(*arguments):
        if traced is not None:
            traced.append(1)
        state, metrics = train_step(*arguments)
        # No two texts are equal: what JAX reads from its own cache is not kept.
        return state, {**metrics, "drawn": jnp.float32(random.random())}

    given = (
        sharding.init_on_mesh(program.init, key, mesh),
        jax.device_put(np.True_, sharding.replicated(mesh)),
        jax.device_put(program.frozen(config), sharding.replicated(mesh)),
        Fed(sharding.put_batch(standin.batch(), mesh), sharding.put_wish(GO_ON, mesh)),
    )
    programs = Programs(program._replace(train_step=step), mesh, config, keep=True)
    return programs.step(mesh, given), given


def bits(tree):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return [(path, leaf.dtype, leaf.tobytes()) for path, leaf in leaves]


def test_a_second_start_traces_nothing_and_steps_to_the_same_bits(steps):
    first, second = [], []
    step, given = started(traced=first)
    made = step(*given)
    again, given = started(traced=second)
    assert (len(first), len(second)) == (1, 0)
    assert bits(again(*given)) == bits(made)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0].params))  # donated, as before
    assert jax.tree.structure(again(*made[:2], *given[2:])) == jax.tree.structure(made)


def test_a_file_that_is_damaged_is_made_again(steps):
    step, given = started()
    made = bits(step(*given)[0])
    (path,) = steps.iterdir()
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:100], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(content)
        traced = []
        step, given = started(traced=traced)
        assert len(traced) == 1
        assert bits(step(*given)[0]) == made
        started(traced=traced)
        assert len(traced) == 1  # it was replaced


@pytest.mark.parametrize(
    "what", ["config", "shapes", "code", "options", "flags", "versions", "processor"]
)
def test_whatever_a_step_is_made_of_is_part_of_its_name(monkeypatch, what):
    mesh = sharding.run_mesh(CONFIG)
    rows = jax.ShapeDtypeStruct((2, 3), np.float32, sharding=sharding.over_batch(mesh))

    def name(config=CONFIG, leaf=rows):
        return kept._name((config, kept._code()), (leaf,))

    before = name()
    assert name() == before
    if what == "config":
        model = dataclasses.replace(CONFIG.model, dtype="bfloat16")
        assert name(dataclasses.replace(CONFIG, model=model)) != before
    elif what == "shapes":
        assert name(leaf=rows.update(dtype=np.int32)) != before
        assert name(leaf=rows.update(shape=(2, 4))) != before
        assert name(leaf=rows.update(sharding=sharding.replicated(mesh))) != before
    elif what == "options":
        jax.config.update("jax_default_matmul_precision", "highest")
        try:
            assert name() != before
        finally:
            jax.config.update("jax_default_matmul_precision", None)
    elif what == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert name() != before
    else:
        patched = {"code": "_code", "versions": "version", "processor": "_processor"}[what]
        monkeypatch.setattr(kept, patched, lambda *_: "another")
        assert name() != before


@pytest.mark.parametrize("who", ["this thread", "another"])
def test_a_program_that_jax_read_from_its_cache_is_not_kept(steps, monkeypatch, who):
    """XLA's CPU back end gives such a one back without some of its functions. The first state is
    read meanwhile, by a thread of its own."""
    compile_ = jax.stages.Lowered.compile

    def hit():
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")

    def read(*arguments, **options):
        reader = threading.Thread(target=hit)
        reader.run() if who == "this thread" else reader.start()
        if who == "another":
            reader.join()
        return compile_(*arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", read)
    started()
    assert steps.exists() == (who == "another")


def test_a_program_that_jax_put_nowhere_is_not_kept(steps):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1000.0)
    started()
    assert not steps.exists()


def test_nothing_is_kept_of_a_network_that_is_registered_from_elsewhere(steps):
    theirs = dataclasses.replace(DECODER_KINDS["vit_light"], name="theirs", variants={})
    DECODER_KINDS.register(theirs)
    try:
        started()
    finally:
        DECODER_KINDS.remove("theirs")
    assert not steps.exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_file(steps):
    steps.write_text("in the way")
    step, given = started()
    assert step(*given)[2]["finite"]
