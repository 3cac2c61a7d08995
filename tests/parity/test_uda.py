"""Teacher, pseudo-labels, loss, ClassMix, augmentation and optimiser groups against the reference.

The functions called here are the ones that a training step calls.
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import check, difference, tolerance
from golden import Case, cases, load
from networks import model_of_names, nchw, nhwc
from steps import norms_decayed

from mrm_jax import convert
from mrm_jax.config import Config, Method, Optimizer, Train
from mrm_jax.models.build import build_segmentor
from mrm_jax.ops.augment import blur_kernel_size, colour_jitter, gaussian_blur
from mrm_jax.ops.mask import block_grid, hidden_tokens
from mrm_jax.ops.normalise import from_unit, to_unit
from mrm_jax.registry import IMAGENET
from mrm_jax.train import optimizer
from mrm_jax.train.state import scalars
from mrm_jax.types import Batch, Labelled, SegOutput, Unlabelled, View
from mrm_jax.uda import pseudo_label, teacher
from mrm_jax.uda.draws import draw
from mrm_jax.uda.methods import passes
from mrm_jax.uda.objectives import (
    Call,
    feature_distance,
    majority_label,
    weighted_cross_entropy,
)
from mrm_jax.uda.pseudo_label import PseudoLabel
from mrm_jax.uda.views import make_views


@pytest.mark.parametrize("name", cases("pseudo_label_and_ce"))
def test_pseudo_labels_and_weights(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    logits, ones = nhwc(given["logits"]), np.ones(out["pseudo_label"].shape, np.uint8)
    rows = np.arange(ones.shape[1]).reshape(1, -1, 1)
    top, bottom = case.meta["ignore_top"], case.meta["ignore_bottom"]
    valid = {
        "": ones,
        "_cropped": ones * ((rows >= top) & (rows < ones.shape[1] - bottom)),
        "_validmask": given["valid_pseudo_mask"][:, 0],
    }
    stored = [re.fullmatch(r"pseudo_weight_([\d.]+)(|_cropped|_validmask)", key) for key in out]
    for match in filter(None, stored):
        threshold = float(match[1])
        got = pseudo_label.make(logits, valid[match[2]], threshold, weight_over="batch")
        np.testing.assert_array_equal(got.label, out["pseudo_label"])
        # A pixel whose confidence is the threshold up to rounding may fall on either side.
        flips = int((np.abs(out["max_prob"] - threshold) < 1e-6).sum())
        np.testing.assert_allclose(
            got.weight, out[match[0]], rtol=0, atol=flips / ones.size + 1e-7, err_msg=match[0]
        )


@pytest.mark.parametrize("name", cases("pseudo_label_and_ce"))
def test_cross_entropy_and_its_gradient(name):
    case = load(name)
    given = case.groups["in"]
    label, weight = given["label"].astype(np.int32), given["seg_weight"]
    full, small = nhwc(given["logits"]), nhwc(given["lowres_logits"])
    value_and_grad = jax.value_and_grad(weighted_cross_entropy)
    plain, plain_grad = value_and_grad(full, label)
    weighted, weighted_grad = value_and_grad(full, label, weight)
    low, low_grad = value_and_grad(small, label, weight)
    ours = {
        "ce_unweighted": plain,
        "ce_unweighted_grad": plain_grad.transpose(0, 3, 1, 2),
        "ce_weighted": weighted,
        "ce_weighted_grad": weighted_grad.transpose(0, 3, 1, 2),
        "lowres_ce_weighted": low,
        "lowres_grad": low_grad.transpose(0, 3, 1, 2),
    }
    check(case, ours)


@pytest.mark.parametrize("name", cases("classmix"))
def test_classmix(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    label = given["gt"][:, 0].astype(np.int32)
    scores = np.zeros((len(label), 256), np.float32)
    for i in range(len(label)):
        scores[i, given[f"chosen_classes_{i}"]] = 1
    known = [value for value in out["classes_in_batch"] if value != 255]
    index = np.arange(len(label), dtype=np.int32)
    batch = Batch(
        Labelled(jnp.asarray(nhwc(given["img"])), label),
        Unlabelled(jnp.asarray(nhwc(given["target_img"])), np.ones(label.shape, np.uint8)),
        index,
    )
    draws = draw(np.zeros(2, np.uint32), 0, index, passes=passes(Method()), grid=(1, 1))
    still = replace(draws.augment["mixed"], jitter_u=np.float32(1), blur_u=np.float32(1))
    mixed = make_views(
        PseudoLabel(
            jnp.asarray(given["pseudo_label"][:, 0].astype(np.int32)),
            jnp.asarray(given["pseudo_weight"]),
            jnp.zeros(()),
        ),
        batch,
        replace(draws, mix=scores, augment={"mixed": still}),
        scalars(Config()),
        names=("mixed",),
        method=Method(),
        num_classes=int(max(known)) + 1,
        stats=IMAGENET,
    )["mixed"]
    # Copies of stored numbers: equal, not close.
    np.testing.assert_array_equal(mixed.image, nhwc(out["mixed_img"]))
    np.testing.assert_array_equal(mixed.label, out["mixed_label"][:, 0])
    np.testing.assert_array_equal(mixed.weight, out["mixed_weight"][:, 0])


@pytest.mark.parametrize("name", cases("color_jitter_blur"))
def test_colour_jitter(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    image = to_unit(jnp.asarray(nhwc(given["img_normalized"])), IMAGENET)
    ours = {"denormed": image.transpose(0, 3, 1, 2)}
    for key in given:
        match = re.fullmatch(r"jitter_(\d+)_order", key)
        if match is None:
            continue
        strength = given[f"jitter_{match[1]}_factors_bcsh"] - np.array([1, 1, 1, 0], np.float32)
        unit = colour_jitter(image, strength[None], given[key].astype(np.int32)[None])
        ours[f"jitter_{match[1]}_unit"] = unit.transpose(0, 3, 1, 2)
        ours[f"jitter_{match[1]}"] = from_unit(unit, IMAGENET).transpose(0, 3, 1, 2)
    assert len(ours) > 1
    assert set(ours) == {key for key in out if key == "denormed" or key.startswith("jitter")}
    check(case, ours)


@pytest.mark.parametrize("name", cases("color_jitter_blur"))
def test_gaussian_blur(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    ours = {}
    for key in given:
        if re.fullmatch(r"blur_\d+", key):
            sigma = given[f"{key}_sigma"].astype(np.float32).reshape(1)
            ours[key] = gaussian_blur(nhwc(given[key]), sigma).transpose(0, 3, 1, 2)
            sizes = [blur_kernel_size(side) for side in given[key].shape[2:]]
            np.testing.assert_array_equal(sizes, out[f"{key}_kernel_size"])
    assert ours
    check(case, ours)
    for side, taps in out["blur_kernel_sizes_for"]:
        assert blur_kernel_size(int(side)) == taps


@pytest.mark.parametrize("name", cases("ema_updates"))
def test_ema(name):
    case = load(name)
    given, out = case.groups["in"], case.groups["out"]
    kept = {k.split("/")[1]: jnp.asarray(v) for k, v in given.items() if k.startswith("ema_before")}
    steps = sorted(
        {int(re.findall(r"^student_(\d+)/", k)[0]) for k in given if k.startswith("student")}
    )
    for step in steps:
        student = {leaf: given[f"student_{step}/{leaf}"] for leaf in kept}
        kept = teacher.ema(student, kept, jnp.int32(step), jnp.float32(case.meta["alpha"]))
        for leaf, value in kept.items():
            error = difference(value, out[f"ema_{step}/{leaf}"])
            assert error <= tolerance(case), (step, leaf, error)


def _config(meta):
    model, _ = model_of_names([name for name, _, _ in meta["param_groups_name_lrmult_wdmult"]])
    options, schedule = meta["optimizer"], meta["lr_config"]
    # The reference's other schedules are none of ours.
    assert (schedule["power"], schedule["min_lr"]) == (1.0, 0.0)
    warmup = schedule["warmup_iters"] if schedule.get("warmup") else 0
    return Config(
        model=model,
        optimizer=Optimizer(
            learning_rate=meta["base_lr"],
            decoder_multiplier=meta["head_lr"] / meta["base_lr"],
            weight_decay=options["weight_decay"],
            decay_encoder_norms=norms_decayed(options),
            warmup=warmup / meta["max_iters"],
        ),
        train=Train(steps=meta["max_iters"]),
    )


@pytest.mark.parametrize("name", cases("lr_schedule_and_groups"))
def test_learning_rates(name):
    case = load(name)
    out, numbers = case.groups["out"], scalars(_config(case.meta))
    rates = jax.vmap(lambda step: optimizer.rates(step, numbers))(out["iters"].astype(np.int32))
    ours = np.stack([rates["encoder"], rates["decoder"]], 1)
    # float32, a handful of operations on exact step numbers.
    np.testing.assert_allclose(ours, out["lr_base_and_head"], rtol=1e-6)


@pytest.mark.parametrize("name", cases("lr_schedule_and_groups"))
def test_parameter_groups(name):
    """Each leaf is filled with its group's number and exported: the torch names then carry it."""
    case = load(name)
    config = _config(case.meta)
    model = build_segmentor(config.model, 19)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), mode="eval")
    )
    params = {"segmentor": shapes["params"], "rebuilder": {}}
    groups = optimizer.groups(params, config)
    kinds = sorted(set(groups.values()))

    def marked(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return np.broadcast_to(np.float32(kinds.index(groups[path])), leaf.shape)

    filled = jax.tree_util.tree_map_with_path(marked, params)["segmentor"]
    stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["batch_stats"])
    named = convert.export_torch({"params": filled, "batch_stats": stats}, "segmentor")
    multiplier = {"encoder": 1.0, "decoder": config.optimizer.decoder_multiplier}
    ours = {}
    for key, value in named.items():
        if re.search(r"running_(mean|var)$|num_batches_tracked$", key):
            continue
        assert np.unique(value).size == 1, key
        group = kinds[int(value.flat[0])]
        ours[key] = (multiplier[group.rate], float(group.decayed))
    stored = {key: (m, d) for key, m, d in case.meta["param_groups_name_lrmult_wdmult"]}
    _, dropped = model_of_names(list(stored))
    assert ours.keys() - stored.keys() == set()
    assert stored.keys() - ours.keys() <= dropped
    wrong = [key for key in ours if not np.allclose(ours[key], stored[key], rtol=1e-6)]
    assert wrong == []


def _distance(case: Case, features: jax.Array, *, classes: Any, min_share: float) -> jax.Array:
    given = case.groups["in"]
    output = SegOutput({}, (features,))
    label = jnp.asarray(given["gt"][:, 0].astype(np.int32))
    anchor = jnp.asarray(nhwc(given["feat_imnet"]))
    view = View(jnp.zeros((*label.shape, 3)), label, jnp.ones(label.shape), anchor)
    numbers = {"method.feature_distance.weight": jnp.float32(case.meta["lambda_"])}
    options = {"classes": classes, "num_classes": 19, "min_share": min_share}
    return feature_distance(Call(output, view, numbers), jax.random.key(0), **options)[0]


@pytest.mark.parametrize("name", cases("imnet_feature_distance"))
def test_feature_distance(name: str) -> None:
    case = load(name)
    given, stored = case.groups["in"], case.groups["out"]
    features, things = jnp.asarray(nhwc(given["feat"])), tuple(case.meta["classes"])
    settings: dict[str, Any] = {"all": {"classes": None, "min_share": 0.0}}
    found = {}
    for key in stored:
        if match := re.fullmatch(r"label_down_([\d.]+)", key):
            share = float(match[1])
            settings[match[1]] = {"classes": things, "min_share": share}
            label, size = given["gt"][:, 0], features.shape[1:3]
            ours = majority_label(label, size, num_classes=19, min_share=share)
            np.testing.assert_array_equal(ours, stored[key][:, 0])
            np.testing.assert_array_equal(
                np.isin(ours, things), np.squeeze(stored[f"fdist_mask_{match[1]}"])
            )
    for key, options in settings.items():
        value = jax.jit(jax.value_and_grad(partial(_distance, case, **options)))
        loss, gradient = value(features)
        found |= {f"loss_{key}": loss, f"grad_{key}": nchw(gradient)}
    same = jnp.asarray(nhwc(given["feat_imnet"]))
    options = next(v for k, v in settings.items() if k != "all")
    loss, gradient = jax.value_and_grad(partial(_distance, case, **options))(same)
    found |= {"loss_identical": loss, "grad_identical": nchw(gradient)}
    # Nothing selected: the reference's loss is NaN and its gradient 0; ours are both 0.
    options = {"classes": things, "min_share": 2.0}
    loss, gradient = jax.value_and_grad(partial(_distance, case, **options))(features)
    assert float(loss) == 0
    found["grad_empty_mask"] = nchw(gradient)
    left = {key for key in stored if key.startswith(("loss", "grad"))} - found.keys()
    assert left <= {"loss_empty_mask"}, "stored and not compared"
    check(case, found)


@pytest.mark.parametrize("name", cases("mic_block_mask"))
def test_block_mask(name: str) -> None:
    case = load(name)
    given, stored = case.groups["in"], case.groups["out"]
    image = nhwc(given["img"])
    size = (image.shape[1], image.shape[2])
    assert block_grid(size, case.meta["block"]) == given["uniform"].shape[2:]
    hide = np.asarray(hidden_tokens(given["uniform"][:, 0], case.meta["ratio"], size))
    np.testing.assert_array_equal(~hide, stored["mask"][:, 0] > 0)
    np.testing.assert_array_equal(np.where(hide[..., None], 0, image), nhwc(stored["masked_img"]))
