"""Planning for devices that are not there: what is counted by hand, and one step that libtpu
compiles for a slice."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from mrm_jax import sharding
from mrm_jax.cli.plan import plan_text
from mrm_jax.command import load_config
from mrm_jax.errors import RunError
from mrm_jax.machine import chips, estimate, plan
from mrm_jax.train.step import build_step

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.py")

PARTS = {"params", "teacher", "optimizer", "frozen", "batch", "temporaries"}


def jaxpr_of(function, *shapes):
    return jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes])


# --- Counting -------------------------------------------------------------------------------------


def grouped(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=dims, feature_group_count=4
    )


def looped(x, w):
    return jax.lax.scan(lambda carry, _: (carry @ w, None), x, None, length=7)[0]


def branched(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)


PRODUCTS = {
    "a product": (jnp.dot, ((3, 5), (5, 7)), 2 * 3 * 5 * 7),
    "products of a batch": (jnp.matmul, ((2, 3, 5), (2, 5, 7)), 2 * 2 * 3 * 5 * 7),
    # 2 x 4 x 4 outputs of 8 channels, each a sum over 3 x 3 cells of 2 of the 8 channels
    "a grouped convolution": (grouped, ((2, 9, 9, 8), (3, 3, 2, 8)), 2 * 2 * 4 * 4 * 8 * 9 * 2),
    "a loop": (looped, ((4, 4), (4, 4)), 7 * 2 * 4**3),
    "the dearer branch": (branched, ((4, 4), (4, 4)), 2 * 4**3),
    "a gradient": (jax.grad(lambda x, w: jnp.dot(x, w).sum()), ((3, 5), (5, 7)), 4 * 3 * 5 * 7),
    "no product": (jnp.sin, ((9,),), 0),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_operations_of_products_are_counted_by_their_definition(case):
    function, shapes, expected = PRODUCTS[case]
    assert estimate.flops(jaxpr_of(function, *shapes)) == expected


def test_what_xla_counts_for_a_network_of_products_is_what_is_counted_here():
    def network(x, a, b):
        return ((x @ a) @ b).sum()

    shapes = ((64, 128), (128, 256), (256, 32))
    gradient = jax.value_and_grad(network, argnums=(0, 1, 2))
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    by_xla = jax.jit(gradient).lower(*arrays).compile().cost_analysis()["flops"]
    # XLA also counts the additions of the sum.
    assert estimate.flops(jaxpr_of(gradient, *shapes)) == pytest.approx(by_xla, rel=0.02)


def test_values_count_from_where_they_are_made_to_where_they_are_last_used():
    side, size = 8, 8 * 8 * 4

    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    def kept(x):
        first = jnp.sin(x)
        return jnp.sin(jnp.sin(first)) @ first

    assert estimate.live_bytes(jaxpr_of(chain, (side, side))) == 2 * size
    assert estimate.live_bytes(jaxpr_of(kept, (side, side))) == 3 * size


def test_cheap_values_are_merged_into_their_consumers_unless_they_are_handed_out():
    size = 8 * 8 * 4

    def merged(x):
        return jnp.sin(x * 2 + 1) @ x

    assert estimate.live_bytes(jaxpr_of(merged, (8, 8))) == 2 * size
    assert estimate.live_bytes(jaxpr_of(lambda x: (x * 2, x + 1), (8, 8))) == 2 * size


def test_computing_again_takes_less_memory_in_the_estimate():
    def loss(block, x):
        for _ in range(6):
            x = block(x)
        return x.sum()

    def block(x):
        return jnp.sin(jnp.exp(jnp.sin(x @ x)))

    stored, again = (
        estimate.live_bytes(jaxpr_of(jax.grad(lambda x, b=b: loss(b, x)), (16, 16)))
        for b in (block, jax.checkpoint(block))
    )
    assert again < 0.6 * stored


# --- A plan without a compiler --------------------------------------------------------------------


def config(*words):
    return load_config(
        [f"--config={TINY}:daformer,mrm=true", *words], {"model.encoder.weights": "w"}
    )


def planned(words=(), topology="h100:4", **options):
    where = chips.parse_topology(topology)
    return plan.plan(config(*words), where, compiled=False, say=lambda line: None, **options)


def test_parts_are_the_bytes_of_the_arrays_that_training_holds():
    found = planned(["--config.train.batch=4"])
    made = config("--config.train.batch=4")
    program = build_step(made)
    key = jax.random.key_data(jax.random.key(0))
    state = sharding.init_on_mesh(program.init, key, sharding.mesh(1))
    frozen = program.frozen(made, {"params": state.params["segmentor"]["encoder"]})

    def held(*trees):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    assert found["bytes"]["params"] == held(state.params, state.batch_stats)
    assert found["bytes"]["teacher"] == held(state.teacher_params, state.teacher_batch_stats)
    assert found["bytes"]["optimizer"] == held(state.opt_state)
    assert found["bytes"]["frozen"] == held(frozen)
    pixels = np.prod(made.data.crop)
    assert found["bytes"]["batch"] == (3 + 1) * 2 * pixels + 4  # one of the four pictures
    assert sum(found["bytes"].values()) == found["peak_bytes"]
    assert found["source"] == "estimated"


def test_fsdp_divides_what_can_be_divided():
    whole, split = (planned([f"--config.mesh.fsdp={n}"]) for n in (1, 4))
    for part in ("params", "teacher", "optimizer"):
        assert 0.2 * whole["bytes"][part] < split["bytes"][part] < 0.5 * whole["bytes"][part]


def test_a_batch_that_the_devices_cannot_share_is_enlarged_and_that_is_said():
    said = []
    found = plan.plan(config(), chips.parse_topology("h100:4"), compiled=False, say=said.append)
    assert found["batch"] == 4
    assert any("--config.train.batch=4" in line for line in said)
    with refused("config.train.batch", 2):
        planned(["--config.mesh.devices=3"])


def test_a_plan_without_its_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = []
    found = plan.plan(config(), chips.parse_topology("v5e:2x1"), say=said.append)
    assert found["source"] == "estimated"
    assert said == ["libtpu is not there, so this is an estimate; install jax[tpu]."]


def test_the_bound_is_the_slowest_of_arithmetic_memory_and_links():
    chip = chips.CHIPS["h100"]
    made = config("--config.train.steps=3600")
    parts = dict.fromkeys(PARTS, 0)
    where = chips.parse_topology("h100:4")
    assert plan.bound(made, where, int(chip.float32), parts, None) == {
        "lower_bound_seconds": 1.0,
        "bound_by": "arithmetic",
        "lower_bound_hours": 1.0,
        "hours": pytest.approx([1 / 0.35, 20]),
        "utilisation": [0.35, 0.05],
    }
    # Twice as fast in bfloat16, to three figures of the data sheet.
    half = replace(made, model=replace(made.model, dtype="bfloat16"))
    found = plan.bound(half, where, int(chip.float32), parts, None)
    assert found["lower_bound_seconds"] == pytest.approx(0.5, rel=2e-3)
    # Frozen weights are read, parameters read and written.
    parts |= {"params": int(chip.bandwidth), "frozen": int(chip.bandwidth / 2)}
    found = plan.bound(made, where, int(chip.float32), parts, None)
    assert (found["bound_by"], found["lower_bound_seconds"]) == ("memory", pytest.approx(2.5))
    sent = {"all-reduce": {"count": 1, "bytes": int(3 * chip.links)}}
    found = plan.bound(made, where, int(chip.float32), parts, sent)
    assert (found["bound_by"], found["lower_bound_seconds"]) == ("links", 3.0)


def test_what_does_not_fit_comes_with_options_that_are_not_yet_set(monkeypatch):
    monkeypatch.setitem(chips.CHIPS, "h100", chips.CHIPS["h100"]._replace(memory=1000))
    found = planned(["--config.train.batch=8", "--config.model.remat=blocks"])
    assert not found["fits"]
    assert "--config.model.dtype=bfloat16" in found["knobs"]
    assert "--config.mesh.fsdp=2" in found["knobs"]
    assert "--config.model.remat=blocks" not in found["knobs"]
    for words in found["knobs"]:  # each of them is an option that a config takes
        config("--config.train.batch=8", words)
    assert "DOES NOT FIT" in plan_text(found)


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_hours_are_a_range_on_every_chip(kind):
    shape = {"v4": "2x2x1", "v5p": "2x2x1"}.get(kind, "2x2" if kind in chips.TPUS else "4")
    where = chips.parse_topology(f"{kind}:{shape}")
    parts = dict.fromkeys(PARTS, 10**9)
    found = plan.bound(config(), where, 10**12, parts, None)
    assert 0 < found["lower_bound_hours"] < found["hours"][0] < found["hours"][1]
    if not where.is_tpu:
        assert f"device_memory_size: {where.chip.memory}" in where.target


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:2x", "h100:2x4", "v7:2x2", "v5e:0x2", "8"])
def test_a_topology_that_is_none_is_one_line(name):
    with refused("--topology", name):
        chips.parse_topology(name)


# --- What compilers print -------------------------------------------------------------------------


def test_collectives_are_read_from_compiled_text():
    if jax.device_count() < 2:
        pytest.skip("needs two devices; tests/conftest.py asks XLA for two unless XLA_FLAGS is set")
    mesh = sharding.mesh(2)
    rows, copies = sharding.over_batch(mesh), sharding.replicated(mesh)

    def sums(x, y):
        return x.sum(0), y.sum(0)

    step = jax.jit(sums, in_shardings=(rows, rows), out_shardings=(copies, copies))
    arrays = jnp.ones((4, 16), jnp.float32), jnp.ones((2, 3), jnp.bfloat16)
    found = plan.collectives(step.lower(*arrays).compile().as_text())
    # XLA may sum bfloat16 in float32, and both in one operation.
    assert list(found) == ["all-reduce"]
    assert found["all-reduce"]["bytes"] in (16 * 4 + 3 * 2, 16 * 4 + 3 * 4)
    text = "  %all-gather.3 = (f32[2,3]{1,0:T(8,128)}, /*index=1*/s8[5]{0}) all-gather-start(%a)\n"
    assert plan.collectives(text) == {"all-gather": {"count": 1, "bytes": 29}}


def test_a_step_that_libtpu_finds_too_large_is_a_size_and_not_a_failure():
    refused = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (29.85G) exceeds available HBM (15.75G)."
    )
    assert plan.too_large(refused) == int(29.85 * 2**30)
    with pytest.raises(RunError, match="does not compile: INTERNAL: x"):
        plan.too_large(RuntimeError("INTERNAL: x"))


def compilers(*names):
    there = any(importlib.util.find_spec(name) for name in names)
    return pytest.mark.skipif(not there, reason=f"needs {names[0]}, which compiles for it")


@pytest.mark.parametrize(
    ("topology", "gib"),
    [
        pytest.param("v5e:2x2", 16, marks=compilers("libtpu")),
        pytest.param("h100:4", 80, marks=compilers("jax_cuda12_plugin", "jax_cuda13_plugin")),
    ],
)
def test_a_small_recipe_is_compiled_for_devices_that_are_not_there(topology, gib):
    words = [sys.executable, "-m", "mrm_jax.main", "plan", f"--config={TINY}:daformer,mrm=true"]
    words += ["--topology", topology, "--level", "O0", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["source"], found["devices"], found["batch"]) == ("compiled", 4, 4)
    assert found["hbm_bytes"] == gib * 2**30
    assert found["fits"]
    assert set(found["bytes"]) == PARTS
    assert sum(found["bytes"].values()) == found["peak_bytes"]
    counted = planned(["--config.train.batch=4"])
    assert found["flops_per_step"] == counted["flops_per_step"]
    assert found["bytes"] | {"temporaries": 0} == counted["bytes"] | {"temporaries": 0}
    # Every gradient is summed over the devices at least once, in bytes of its parameter or half.
    assert found["collectives"]["all-reduce"]["bytes"] > found["bytes"]["params"] / 2
    assert found["lower_bound_seconds"] > 0
