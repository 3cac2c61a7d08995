"""Attention equals flax's in both of its forms, and loses in bfloat16 no more than its output's
rounding must."""

import re
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import QUICK

from mrm_jax.command import load_config
from mrm_jax.ops import attention
from mrm_jax.ops.attention import attend, fused
from mrm_jax.train.state import build_networks

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"


def test_attention_equals_flax_dot_product_attention():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 12)), jnp.float32) for n in (7, 4, 4))
    heads = [a.reshape(2, -1, 3, 4) for a in (q, k, v)]
    expected = nn.dot_product_attention(*heads).reshape(2, 7, 12)
    np.testing.assert_allclose(attend(q, k, v, 3), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_attention_in_bfloat16_rounds_shares_and_output_and_nothing_else(scale):
    rng = np.random.default_rng(0)
    sizes = {"query": (64, scale), "key": (256, scale), "value": (256, 1)}
    narrow = [jnp.asarray(s * rng.normal(size=(2, n, 64)), jnp.bfloat16) for n, s in sizes.values()]
    ours = attend(*narrow, 2)
    assert ours.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        exact = attend(*(jnp.asarray(np.asarray(x, np.float64)) for x in narrow), 2)
        assert exact.dtype == jnp.float64
    off = np.asarray(ours, np.float64) - np.asarray(exact)
    # Two roundings, each by half a step of eight bits: 2^-9 of the number at most.
    assert np.linalg.norm(off) / np.linalg.norm(exact) < 2 * 2**-9


def test_the_gradient_of_the_scores_is_that_of_plain_products():
    rng = np.random.default_rng(1)
    x = [jnp.asarray(rng.normal(size=(2, n, 12)), jnp.float32) for n in (7, 4, 4)]

    def plain(q, k, v):
        heads = [a.reshape(2, -1, 3, 4) for a in (q, k, v)]
        return nn.dot_product_attention(*heads).reshape(2, 7, 12)

    def loss(function):
        return lambda *x: jnp.square(function(*x)).sum()

    ours = jax.grad(loss(lambda *x: attend(*x, 3)), (0, 1, 2))(*x)
    for found, wanted in zip(ours, jax.grad(loss(plain), (0, 1, 2))(*x), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    narrow = jax.grad(lambda *x: attend(*x, 3).astype(jnp.float32).sum(), (0, 1, 2))
    assert {g.dtype for g in narrow(*(a.astype(jnp.bfloat16) for a in x))} == {
        jnp.dtype(jnp.bfloat16)
    }


# --- By turns -------------------------------------------------------------------------------------


def turned(monkeypatch, rows):
    """Turns of `rows` of the queries that `both_forms` has."""
    monkeypatch.setattr(attention, "_rows_at_a_time", lambda query, key: rows)


def both_forms(monkeypatch, dtype):
    """[value and gradients] of attention at once and in six turns, with 3 heads."""
    rng = np.random.default_rng(3)
    x = [jnp.asarray(rng.normal(size=(2, n, 12)), dtype) for n in (24, 5, 5)]
    g = jnp.asarray(rng.normal(size=(2, 24, 12)), dtype)
    found = []
    for rows in (None, 4):
        turned(monkeypatch, rows)
        value, pull = jax.vjp(lambda *x: attend(*x, 3), *x)
        found.append([value, *pull(g)])
    return found


def test_by_turns_is_at_once_in_value_and_gradient(monkeypatch):
    with jax.enable_x64(True):
        for ours, plain in zip(*both_forms(monkeypatch, jnp.float64)[::-1], strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-13)


def test_by_turns_in_bfloat16_is_as_near_as_at_once(monkeypatch):
    with jax.enable_x64(True):
        rounded, turns = both_forms(monkeypatch, jnp.bfloat16)
    for ours, plain in zip(turns, rounded, strict=True):
        assert ours.dtype == plain.dtype == jnp.bfloat16
        ours, plain = (np.asarray(x, np.float32) for x in (ours, plain))
        assert np.linalg.norm(ours - plain) / np.linalg.norm(plain) < 2**-7


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "rows"),
    [
        (16384, 256, 1, 256),  # MiT-B0's first stage at 512 px, two pictures
        (4096, 256, 2, 128),
        (256, 256, 8, 64),
        (4096, 64, 1, 1024),
        (256, 64, 5, None),  # few scores
        (1370, 1370, 12, None),  # nothing between 16 and 64 divides it
    ],
)
def test_turns_are_of_equal_size_and_only_where_there_are_many_scores(queries, keys, heads, rows):
    query, key = (jnp.zeros((2, heads, n, 1)) for n in (queries, keys))
    assert attention._rows_at_a_time(query, key) == rows


def test_an_accelerator_has_no_turns(monkeypatch):
    turned(monkeypatch, 4)
    x = qkv()
    grad = jax.jit(jax.grad(lambda *x: attend(*x, 2).sum(), (0, 1, 2))).trace(*x)
    loops = {
        platform: "stablehlo.while" in grad.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert loops == {"cpu": True, "tpu": False, "cuda": False}


# --- The fused form -------------------------------------------------------------------------------

LENGTHS = (64, 4)  # MiT's queries are more than its reduced keys.


def qkv(dtype=jnp.float32, width=16, lengths=LENGTHS):
    rng = np.random.default_rng(2)
    many, few = lengths
    return [jnp.asarray(rng.normal(size=(2, n, width)), dtype) for n in (many, few, few)]


def test_the_fused_form_is_the_plain_one_in_value_and_gradient():
    """By JAX's own computation of what the kernel does; the kernel itself needs a GPU."""
    x = qkv()

    def loss(function):
        return lambda *x: jnp.square(function(*x)).sum()

    def ours(*x):
        return fused(*x, heads=2, kernel="xla")

    (value, grads), (plain, others) = (
        jax.jit(jax.value_and_grad(loss(f), (0, 1, 2)), compiler_options=QUICK)(*x)
        for f in (ours, attending("plain"))
    )
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for found, wanted in zip(grads, others, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture
def cudnn(monkeypatch):
    """JAX where cuDNN is installed, which lowers for GPUs that are not there."""
    from jax._src.cudnn import fused_attention_stablehlo

    versions = SimpleNamespace(cudnn_get_version=lambda: 90800)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)


def kernels(function, arrays, platform="cuda"):
    """cuDNN's kernels in `function` and its gradient, lowered for a platform."""
    grad = jax.grad(lambda *x: function(*x).astype(jnp.float32).sum(), tuple(range(len(arrays))))
    lowered = jax.jit(grad).trace(*arrays).lower(lowering_platforms=(platform,))
    return set(re.findall(r"@__cudnn\$(\w+)", lowered.as_text()))


BOTH = {"fmhaSoftmax", "fmhaSoftmaxBackward"}


def attending(form):
    return lambda *x: attend(*x, 2, form=form)


def test_the_kernel_runs_on_gpus_alone_and_only_where_it_is_asked_for(cudnn):
    x = qkv(jnp.bfloat16)
    assert kernels(attending("fused"), x) == BOTH
    assert kernels(attending("fused"), x, "cpu") == kernels(attending("fused"), x, "tpu") == set()
    assert kernels(attending("plain"), x) == set()
    np.testing.assert_array_equal(attending("fused")(*x), attending("plain")(*x))  # on the CPU


MISFITS = {
    "float32": {},
    "12 channels a head": {"dtype": jnp.bfloat16, "width": 24},
    "an odd number of keys": {"dtype": jnp.bfloat16, "lengths": (64, 5)},
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_the_kernel_does_not_take_is_attended_plainly(cudnn, case):
    assert kernels(attending("fused"), qkv(**MISFITS[case])) == set()


def test_without_cudnn_the_fused_form_is_the_plain_one():
    assert kernels(attending("fused"), qkv(jnp.bfloat16)) == set()


# One kernel for each attention of a loop: two stages of MiT or the ViT's one, and the Rebuilder's.
@pytest.mark.parametrize(
    ("recipe", "count"), [("", 3), (",encoder=dinov2_s14,decoder=vit_light,crop=14x70", 2)]
)
def test_the_option_reaches_encoder_and_rebuilder(cudnn, recipe, count):
    words = [f"--config={TINY}:dacs,mrm=true{recipe}", "--config.model.unroll=False"]
    words += ["--config.model.dtype=bfloat16"]
    for form, expected in (("plain", 0), ("fused", count)):
        made = load_config([*words, f"--config.model.attention={form}"])
        networks = build_networks(made)
        image = jnp.zeros((1, *made.data.crop, 3))
        hidden = jnp.zeros((1, *made.method.mrm.grid))

        def forward(key, networks=networks, image=image, hidden=hidden):
            maps, _ = networks.segmentor.init_with_output(key, image, mode="eval", method="encode")
            return networks.rebuilder.init_with_output(key, maps["context"], hidden, 0.4)[0]

        traced = jax.jit(forward).trace(jax.random.key(0))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("@__cudnn$fmhaSoftmax(") == expected
