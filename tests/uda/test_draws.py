"""Draws: keyed by sample, step and name, and by nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.config import MRM, Config, Data, Method, Model, MultiRes
from mrm_jax.uda.draws import Offsets, detail_offsets, draw
from mrm_jax.uda.methods import passes

ROOT = np.array([3, 4], np.uint32)
PLAIN, REBUILT = (passes(Method(mrm=MRM(enabled=enabled))) for enabled in (False, True))


def _draw(step, index, rows=REBUILT):
    return draw(ROOT, step, np.asarray(index, np.int32), passes=rows, grid=(3, 5))


def _same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _rows(draws):
    """All that belongs to single images; the rest is shared by the batch."""
    jitter = draws.augment["mixed"]
    return [draws.mix, draws.mask, jitter.strength, jitter.order, jitter.sigma_u]


def test_a_sample_draws_the_same_wherever_it_stands():
    whole, split = _draw(7, [4, 5, 6, 7]), [_draw(7, [4, 5]), _draw(7, [6, 7])]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *map(_rows, split))
    assert _same(_rows(whole), joined)
    assert _same(whole.module, split[0].module)
    assert whole.augment["mixed"].jitter_u == split[1].augment["mixed"].jitter_u


def test_samples_steps_and_streams_differ():
    one, other = _draw(7, [4, 5]), _draw(8, [4, 5])
    assert not np.array_equal(one.mix[0], one.mix[1])
    assert not np.array_equal(one.mix, other.mix)
    assert not np.array_equal(one.module["source"], one.module["mixed"])
    assert not np.array_equal(one.module["source"], other.module["source"])


def test_mrm_leaves_every_other_draw_alone():
    plain, rebuilt = _draw(3, [0, 1], PLAIN), _draw(3, [0, 1])
    assert _same([plain.mix, plain.augment], [rebuilt.mix, rebuilt.augment])
    assert _same(plain.module, {name: rebuilt.module[name] for name in plain.module})
    assert plain.mask == {}
    assert rebuilt.mask["reconstructed"].shape == (2, 3, 5)


def test_ranges_and_orders_are_what_the_jitter_expects():
    jitter = _draw(0, range(50)).augment["mixed"]
    np.testing.assert_array_equal(np.sort(jitter.order, -1), np.arange(4) + np.zeros((50, 1)))
    assert len({tuple(row) for row in np.asarray(jitter.order)}) > 10
    assert -1 <= jitter.strength.min() < -0.9
    assert 0.9 < jitter.strength.max() < 1


def test_compiled_they_are_the_same():
    compiled = jax.jit(lambda root, step, index: draw(root, step, index, passes=PLAIN, grid=(1, 1)))
    assert _same(compiled(ROOT, 5, np.arange(3, dtype=np.int32)), _draw(5, range(3), PLAIN))


def test_detail_crops_start_at_multiples_that_leave_the_last_one_out():
    """HRDA at 1024 px: multiples of 8 from 0 to 504, a corner a pass and step for all pictures."""
    config = Config(data=Data(crop=(1024, 1024)), model=Model(multires=MultiRes(enabled=True)))
    offsets = detail_offsets(config)
    rows = passes(Method(kind="dacs", mrm=MRM(enabled=True)))

    def corners(step):
        return draw(ROOT, step, jnp.arange(2), passes=rows, grid=(1, 1), offsets=offsets).offset

    found = jax.vmap(corners)(jnp.arange(300))
    values = np.stack([found[row.name] for row in rows], axis=1)
    assert values.shape == (300, 3, 2)
    assert (values % 8 == 0).all()
    assert (values.min(), values.max()) == (0, 504)
    assert len({tuple(v) for v in values.reshape(-1, 2)}) > 700  # of 4096, drawn 900 times
    assert detail_offsets(Config()) is None


def test_the_detail_has_a_mask_of_its_own():
    rows = passes(Method(kind="dacs", mrm=MRM(enabled=True)))
    offsets = Offsets((2, 2), 8)
    drawn = draw(ROOT, 0, jnp.arange(2), passes=rows, grid=(3, 5), offsets=offsets).mask
    assert drawn.keys() == {"reconstructed", "reconstructed/detail"}
    assert (drawn["reconstructed"] != drawn["reconstructed/detail"]).any()
