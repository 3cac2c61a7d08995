"""Whole training steps of the stored cases: their configuration, state, batch and draws for our
step, and what our step gives under the names that a case stores it with.

Everything runs in float64 through `train.step.build_step`, as training runs it. A method that arrives
later adds: to `method` its options, to `losses` its metrics, to `CHOICES` its stored draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from golden import Case
from networks import nhwc, segmentor_config

from mrm_jax import config
from mrm_jax.convert import describe, export_torch, import_torch
from mrm_jax.train.optimizer import adam
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Batch, Draws, Frozen, Labelled, TrainState, Unlabelled

Arrays = dict[str, Any]

# What stands before a loss in the reference's log -> our pass.
PASSES = {"": "source", "mix.": "mixed", "masked.": "masked", "mrm.": "reconstructed"}
# Stored, without a counterpart of ours: accuracies, which we do not log; `loss`, the last logged
# loss over again; the teacher's logits, which the pseudo-labels and the mixed loss follow from.
NOT_OURS = r"log_\d+/(.*acc_seg|loss)|ema_logits_every8_\d+"
PER_PARAMETER = ("grad_l2", "p_before", "p_after", "delta")
# The cells of a stored mask are 0 where they are hidden and 1 elsewhere.
HALFWAY = 0.5
# The reference's steps had a constant rate; ours decays linearly over so many steps.
ENDLESS = 10**18


def method(uda: Mapping[str, Any]) -> config.Method:
    """`config.Method` of a case, without MRM; ValueError for one that no method of ours is."""
    mode, distance = uda["mask_mode"], uda["imnet_feature_dist_lambda"]
    images = {"separatetrg": "target", "separatetrgaug": "target", "separate": "both", None: None}
    if uda["type"] != "DACS" or mode not in images:
        raise ValueError(f"the stored method is {uda['type']} with masks {mode}; no method here is")
    kind = "mic" if mode else "daformer" if distance else "dacs"
    return config.Method(
        kind=kind,
        ema_decay=uda["alpha"],
        threshold=uda["pseudo_threshold"],
        augment=config.Augment(jitter_probability=0.0, blur_probability=0.0),
        feature_distance=config.FeatureDistance(
            weight=distance,
            classes=tuple(f"class {i}" for i in uda["imnet_feature_dist_classes"] or ()),
            min_share=uda["imnet_feature_dist_scale_min_ratio"] or 0.0,
        ),
        mic=config.MIC(
            weight=uda["mask_lambda"],
            images=images[mode] or "target",
            ratio=HALFWAY,
        ),
    )


def rebuilder(case: Case) -> config.MRM:
    """`config.MRM` of a case; off where it has none."""
    stored, options = case.meta["mrm"], case.meta["optimizer"]
    if not stored:
        return config.MRM()
    shown = describe(case.groups["sd_rebuilder"], "rebuilder")["rebuilder"]
    return config.MRM(
        enabled=stored["enabled"],
        weight=stored["loss_weight"],
        ratio=HALFWAY,
        grid=(stored["grid"], stored["grid"]),
        dim=stored["embed_dim"],
        depth=shown["depth"],
        heads=stored["num_heads"],
        learning_rate=options["lr"],
        # By names: the reference's rule finds no "norm" between the transposed convolutions, and
        # the step cases have no rule for the token.
        undecayed=() if norms_decayed(options) else ("norms",),
    )


def norms_decayed(options: Mapping[str, Any]) -> bool:
    keys = options["paramwise_cfg"]["custom_keys"]
    return keys.get("norm", {}).get("decay_mult", 1.0) > 0


def configuration(case: Case) -> config.Config:
    """The run that a case is a step of; sizes from its tensors, the rest from its sidecar."""
    meta, options = case.meta, case.meta["optimizer"]
    stored = meta["model"]
    model = segmentor_config(case.groups["sd_student"], "segmentor", stored)
    keys = options["paramwise_cfg"]["custom_keys"]
    names = tuple(f"class {i}" for i in range(stored["decode_head"]["num_classes"]))
    adapted, crop = method(meta["uda"]), case.groups["in"]["img_0"].shape[2:]
    # Blocks as the case stores them, whatever side its generator was given.
    block = crop[0] // case.groups["in"].get("mic_mask_0", np.zeros((1, 1, 1, 1))).shape[2]
    return config.Config(
        data=config.Data(
            classes=config.Classes(names, ((0, 0, 0),) * len(names)),
            crop=crop,
        ),
        model=replace(
            model,
            encoder=replace(model.encoder, drop_path=stored["backbone"].get("drop_path_rate", 0.0)),
            decoder=replace(model.decoder, dropout=stored["decode_head"].get("dropout_ratio", 0.0)),
            unroll=False,  # compiles faster
        ),
        method=replace(adapted, mrm=rebuilder(case), mic=replace(adapted.mic, block=block)),
        optimizer=config.Optimizer(
            learning_rate=options["lr"],
            decoder_multiplier=keys["head"]["lr_mult"],
            weight_decay=options["weight_decay"],
            decay_encoder_norms=norms_decayed(options),
            warmup=0.0,
            beta1=options["betas"][0],
            beta2=options["betas"][1],
        ),
        train=config.Train(steps=ENDLESS, batch=len(case.groups["in"]["img_0"])),
    )


def state(case: Case, options: config.Config) -> TrainState:
    """The state before the first stored iteration; Adam has seen none yet."""
    student = import_torch(case.groups["sd_student"], "segmentor")
    taught = import_torch(case.groups["sd_teacher"], "segmentor")
    rebuilt = case.groups.get("sd_rebuilder") if case.meta["mrm"] else None
    rebuilt = import_torch(rebuilt, "rebuilder") if rebuilt else {"params": {}}
    student, taught, rebuilt = _wide((student, taught, rebuilt))
    params = {"segmentor": student["params"], "rebuilder": rebuilt["params"]}
    return TrainState(
        step=np.asarray(case.meta["start_iter"], np.int32),
        params=params,
        batch_stats=student["batch_stats"],
        teacher_params=taught["params"],
        teacher_batch_stats=taught["batch_stats"],
        opt_state=jax.jit(adam(options.optimizer).init)(params),
        root_key=np.zeros(2, np.uint32),
    )


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def frozen(case: Case, numbers: Frozen) -> Frozen:
    """`numbers` with the frozen encoder of a case; one that stores none starts from it."""
    stored = case.groups.get("sd_imnet")
    if not stored:
        network = _wide(import_torch(case.groups["sd_student"], "segmentor"))
        encoder = {name: tree.get("encoder", {}) for name, tree in network.items()}
    else:
        kind = "resnet_v1c" if any(key.endswith("stem.0.weight") for key in stored) else "mit"
        encoder = _wide(import_torch(stored, kind))
    return Frozen(numbers.scalars, encoder["params"], encoder["batch_stats"])


def batch(case: Case, i: int) -> Batch:
    """Pictures and labels of iteration i, normalised already."""
    given, uda = case.groups["in"], case.meta["uda"]
    source, target = (
        nhwc(given[f"{name}_{i}"]).astype(np.float64) for name in ("img", "target_img")
    )
    count, height, width, _ = target.shape
    valid = np.ones((count, height, width), np.uint8)
    valid[:, : uda["pseudo_weight_ignore_top"]] = 0
    valid[:, height - uda["pseudo_weight_ignore_bottom"] :] = 0
    if (stored := given.get(f"valid_pseudo_mask_{i}")) is not None:
        valid *= stored[:, 0].astype(np.uint8)
    label = given[f"gt_{i}"][:, 0].astype(np.int32)
    return Batch(
        Labelled(source, label), Unlabelled(target, valid), np.arange(count, dtype=np.int32)
    )


def _mixed_classes(given: Arrays, i: int, draws: Draws) -> Draws:
    scores = np.zeros(draws.mix.shape, np.float32)
    for sample in range(len(scores)):
        scores[sample, given[f"mix_classes_{i}_{sample}"]] = 1
    return replace(draws, mix=scores)


def _masks(given: Arrays, i: int, draws: Draws) -> Draws:
    """MIC's blocks and the Rebuilder's tokens: 1 is visible in both."""
    stored = {name: "mic_mask" if name == "masked" else "rebuilder_mask" for name in draws.mask}
    masks = {name: given[f"{key}_{i}"][:, 0] for name, key in stored.items()}
    return replace(draws, mask=masks)


def _corners(given: Arrays, i: int, draws: Draws) -> Draws:
    """Box k is that of the k-th forward of the student; (top, bottom, left, right)."""
    order = [name for name in PASSES.values() if name in draws.offset]
    boxes = {name: given[f"hr_crop_boxes_{i}"][k] for k, name in enumerate(order)}
    return replace(draws, offset={n: box[[0, 2]].astype(np.int32) for n, box in boxes.items()})


CHOICES: tuple[Callable[[Arrays, int, Draws], Draws], ...] = (_mixed_classes, _masks, _corners)


@dataclass(frozen=True)
class Compiled:
    """The step of a case, compiled, and what it is called with besides state and batch."""

    program: Program
    frozen: Frozen
    draws: Draws
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def compiled(case: Case) -> Compiled:
    """The step of a case. Call this and all that uses it under `jax.enable_x64`."""
    options = configuration(case)
    program = build_step(options)
    start, first = state(case, options), batch(case, 0)
    given = frozen(case, program.frozen(options))
    draws = jax.device_get(jax.jit(program.draw)(start.root_key, start.step, first.index))
    step = jax.jit(program.step_with).lower(start, given, first, draws).compile()
    return Compiled(program, given, draws, step)


def iterations(case: Case, ours: Compiled) -> Iterator[Arrays]:
    """For each stored iteration, our outputs under the names of the case."""
    now = jax.device_get(state(case, configuration(case)))
    for i in range(case.meta["iters"]):
        given = batch(case, i)
        draws = ours.draws
        for choose in CHOICES:
            draws = choose(case.groups["in"], i, draws)
        after, metrics = jax.device_get(ours.step(now, ours.frozen, given, draws))
        found = _metrics(case, metrics, i) | _parameters(case, now, after, i)
        yield found | _teacher(case, after, i)
        now = after


def losses(case: Case, metrics: Mapping[str, jax.Array]) -> Arrays:
    """Our losses under the names of the reference's log, weighted as it logs them."""
    found: Arrays = {}
    head = case.meta["model"]["decode_head"]
    for prefix, name in PASSES.items():
        if f"{name}/ce" in metrics:
            found[f"{prefix}decode.loss_seg"] = metrics[f"{name}/ce"]
        elif f"{name}/ce_fused" in metrics:
            share = head["hr_loss_weight"]
            found[f"{prefix}decode.loss_seg"] = (1 - share) * metrics[f"{name}/ce_fused"]
            found[f"{prefix}decode.hr.loss_seg"] = share * metrics[f"{name}/ce_detail"]
    if "source/feature_distance" in metrics:
        weight = case.meta["uda"]["imnet_feature_dist_lambda"]
        found["src.loss_imnet_feat_dist"] = weight * metrics["source/feature_distance"]
    return found


def _metrics(case: Case, metrics: Mapping[str, jax.Array], i: int) -> Arrays:
    prefix = f"log_{i}/"
    return {
        **{prefix + name: value for name, value in losses(case, metrics).items()},
        f"pseudo_weight_{i}": metrics["teacher/confident_share"],
        f"pseudo_class_share_{i}": metrics["teacher/class_share"],
    }


def _parameters(case: Case, before: TrainState, after: TrainState, i: int) -> Arrays:
    """Norms per parameter, and per group for the gradient, which Adam's first moment tells."""
    beta = case.meta["optimizer"]["betas"][0]
    gradient = jax.tree.map(
        lambda new, old: (new - beta * old) / (1 - beta), after.opt_state.mu, before.opt_state.mu
    )
    moved = jax.tree.map(np.subtract, after.params, before.params)
    names = case.meta["param_order"]
    trees = (gradient, before.params, after.params, moved)
    found = {
        f"{what}_{i}": _norms(_named(tree, before), names)
        for what, tree in zip(PER_PARAMETER, trees, strict=True)
    }
    squares = np.nan_to_num(found[f"grad_l2_{i}"]) ** 2
    groups = [
        sum(x for name, x in zip(names, squares, strict=True) if _in_group(name, group))
        for group in case.meta["grad_groups"]
    ]
    found[f"grad_l2_cumulative_{i}"] = np.sqrt(groups)
    return found


def _in_group(name: str, group: str) -> bool:
    return name.removeprefix("model.").startswith(f"{group}.")


def _named(params: Mapping[str, Any], holder: TrainState) -> dict[str, np.ndarray]:
    """A tree like the parameters, under the names of the case."""
    variables = {"params": params["segmentor"], "batch_stats": holder.batch_stats}
    network = export_torch(variables, "segmentor")
    named = {f"model.{key}": value for key, value in network.items()}
    if params["rebuilder"]:
        rebuilt = export_torch({"params": params["rebuilder"], "batch_stats": {}}, "rebuilder")
        named |= {f"rebuilder.{key}": value for key, value in rebuilt.items()}
    return named


def _norms(named: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """L2 norm of each; NaN for the position table, which is no parameter of ours."""
    return np.array([np.linalg.norm(named[n]) if n in named else np.nan for n in names])


def _teacher(case: Case, after: TrainState, i: int) -> Arrays:
    """Norms of the teacher's weights, and BatchNorm's running averages."""
    student = {"params": after.params["segmentor"], "batch_stats": after.batch_stats}
    averaged = {"params": after.teacher_params, "batch_stats": after.teacher_batch_stats}
    named = export_torch(averaged, "segmentor")
    found: Arrays = {f"ema_norm_{i}": _norms(named, case.meta["ema_param_order"])}
    for prefix, network in (("model", export_torch(student, "segmentor")), ("ema_model", named)):
        found |= {
            f"bn_after/{prefix}.{key}": value for key, value in network.items() if "running" in key
        }
    return found
