"""The parts of a network and of a step, each as a program of its own, so that the slow one shows.

The network is traced once and every module that is called on the way is noted with the shapes that
it is given. So any encoder and decoder has parts, under the paths of their parameters. A part alone
is not what it is inside the step, where XLA merges it with its neighbours: sums of parts are no
step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import sharding
from mrm_jax.config import Config, input_stats
from mrm_jax.machine.work import Call, Work, costs
from mrm_jax.ops.mix import class_mask, paste
from mrm_jax.train import optimizer
from mrm_jax.train.state import frozen as frozen_of
from mrm_jax.train.step import Program, build_step
from mrm_jax.types import Jitter
from mrm_jax.uda import pseudo_label, teacher
from mrm_jax.uda.methods import has_teacher
from mrm_jax.uda.objectives import weighted_cross_entropy
from mrm_jax.uda.views import strong_augment

DEPTH = 3
"""Names in the path of a part, at most: encoder/block1/attn, decoder/fuse/branch0."""


def works(config: Config, mesh: jax.sharding.Mesh) -> list[Work]:
    """Modules in the order in which they are called, forwards and with their gradients, then what a
    step has besides. `mesh` says the kind of device alone: a part runs on one."""
    program = build_step(config)
    options = None if config.train.optimise else sharding.quick(mesh)
    state = jax.eval_shape(program.init, jax.random.key_data(jax.random.key(0)))
    found: list[Work] = []

    def add(what: str, part: str, times: int, run: Callable[..., Any], *given: Any) -> None:
        make = partial(_compiled, run, given, options)
        found.append(Work(what, part, times, make))

    for module in _modules(config, program, state):
        given = module.variables, module.arrays
        add("forward", module.name, module.times, module.forward, *given)
        add("backward", module.name, module.times, module.backward, *given)
    for what, part, run, given in _others(config, program, state):
        add(what, part, 1, run, *given)
    return found


def _compiled(run: Callable[..., Any], given: Any, options: Any) -> Call:
    """`run` compiled for arrays of `given` shapes, and those arrays."""
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(partial(_some, rng), given)
    compiled = jax.jit(run).lower(*arrays).compile(compiler_options=options)
    return Call(lambda: jax.block_until_ready(compiled(*arrays)), costs(compiled))


def _some(rng: np.random.Generator, leaf: Any) -> jax.Array:
    """Noise of a shape; counters and labels are small."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)
    return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)


@dataclass(frozen=True)
class _Module:
    """A module that was called: its own variables as shapes, and its arguments, of which `arrays`
    are found at `places`."""

    name: str
    module: nn.Module
    variables: Any
    arguments: list[Any]
    places: list[int]
    structure: Any
    times: int = 1

    @property
    def arrays(self) -> list[Any]:
        return [self.arguments[place] for place in self.places]

    def forward(self, variables: Any, arrays: list[Any]) -> Any:
        leaves = list(self.arguments)
        for place, array in zip(self.places, arrays, strict=True):
            leaves[place] = array
        args, kwargs = jax.tree.unflatten(self.structure, leaves)
        rngs = {"dropout": jax.random.key(0)}
        return self.module.apply(variables, *args, **kwargs, rngs=rngs, mutable=["moments"])[0]

    def backward(self, variables: Any, arrays: list[Any]) -> Any:
        """The output, and the gradients of parameters and maps; pictures, of 3 channels, need
        none."""
        wanted = [jnp.issubdtype(a.dtype, jnp.floating) and a.shape[-1] != 3 for a in arrays]
        moved = [a for a, one in zip(arrays, wanted, strict=True) if one]

        def output(params: Any, moved: list[Any]) -> Any:
            left = iter(moved)
            given = [next(left) if one else a for a, one in zip(arrays, wanted, strict=True)]
            return self.forward({**variables, "params": params}, given)

        out, gradient = jax.vjp(output, variables.get("params", {}), moved)
        return out, gradient(jax.tree.map(jnp.ones_like, out))


def _modules(config: Config, program: Program, state: Any) -> list[_Module]:
    called: dict[tuple[str, ...], _Module] = {}
    whole = state.params["segmentor"]

    def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if context.method_name == "__call__" and path != ("encoder",) and 0 < len(path) <= DEPTH:
            called.setdefault(path, _noted(context.module, args, kwargs))
        return following(*args, **kwargs)

    def run(params: Any, stats: Any, image: Any) -> Any:
        with nn.intercept_methods(note):
            return program.networks.segmentor.apply(
                {"params": params, "batch_stats": stats},
                image,
                mode="train",
                offset=jnp.zeros(2, jnp.int32),
                rngs={"dropout": jax.random.key(0)},
                mutable=["moments"],
            )

    image = jax.ShapeDtypeStruct((config.train.batch, *config.data.crop, 3), jnp.float32)
    jax.eval_shape(run, state.params["segmentor"], state.batch_stats, image)
    found = [
        replace(module, times=_times(module, functools.reduce(lambda t, n: t[n], path, whole)))
        for path, module in called.items()
        if module.variables.get("params")
    ]
    # What holds a stack of blocks takes long to compile and is known by them.
    stacks = [module.name for module in found if module.times > 1]
    return [
        module
        for module in found
        if not any(own.startswith(f"{module.name}/") for own in stacks) or module.times > 1
    ]


def _times(module: _Module, stored: Any) -> int:
    """How many blocks like `module` are stored stacked under its path."""
    one, all_of_them = (jax.tree.leaves(t)[0].shape for t in (module.variables["params"], stored))
    return all_of_them[0] if len(all_of_them) > len(one) else 1


def _noted(module: nn.Module, args: Any, kwargs: Any) -> _Module:
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=lambda leaf: leaf is None)
    kept = {name: tree for name, tree in module.variables.items() if name != "moments"}
    return _Module(
        "/".join(module.path),
        module.clone(parent=None, name=None),
        jax.tree.map(_shape, kept),
        [_shape(leaf) if hasattr(leaf, "shape") else leaf for leaf in leaves],
        [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape")],
        structure,
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _others(config: Config, program: Program, state: Any) -> list[tuple[str, str, Any, Any]]:
    """(what, part, function, its arguments as shapes) of loss, pseudo-labels, views, teacher,
    update."""
    size, count = (config.train.batch, *config.data.crop), len(config.data.classes.names)
    pictures = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    label = jax.ShapeDtypeStruct(size, jnp.int32)
    params = state.params["segmentor"]
    logits = _shape(_logits(program, state, pictures))
    numbers = frozen_of(config).scalars
    loss = weighted_cross_entropy

    def views(source: Any, label: Any, target: Any, scores: Any) -> Any:
        mask = class_mask(label, scores, num_classes=count, classes_of=config.method.mix_classes_of)
        return paste(mask, source, target), paste(mask, label, label)

    def augment(image: Any, draws: Jitter) -> Any:
        # Above every draw: jittered and blurred.
        sure = jax.tree.map(lambda number: 2 + 0 * number, numbers)
        return strong_augment(image, draws, sure, config.method.augment, input_stats(config.model))

    def teach(logits: Any, valid: Any) -> Any:
        over = config.method.weight_over
        return pseudo_label.make(logits, valid, config.method.threshold, weight_over=over)

    def update(params: Any, grads: Any, opt_state: Any) -> Any:
        return optimizer.update(params, grads, opt_state, jnp.zeros((), jnp.int32), numbers, config)

    found = [
        ("forward", "loss", loss, (logits, label)),
        ("backward", "loss", jax.value_and_grad(loss), (logits, label)),
    ]
    if has_teacher(config.method):
        index = jax.ShapeDtypeStruct(size[:1], jnp.int32)
        draws = jax.eval_shape(program.draw, state.root_key, state.step, index)
        found += [
            ("forward", "pseudo_label", teach, (logits, label)),
            ("forward", "mix", views, (pictures, label, pictures, draws.mix)),
            ("forward", "augment", augment, (pictures, draws.augment["mixed"])),
            (
                "forward",
                "ema",
                lambda s, t: teacher.ema(s, t, jnp.ones((), jnp.int32), config.method.ema_decay),
                (params, params),
            ),
        ]
    moments = state.opt_state
    return [*found, ("forward", "optimizer", update, (state.params, state.params, moments))]


def _logits(program: Program, state: Any, pictures: Any) -> Any:
    def run(params: Any, stats: Any, image: Any) -> Any:
        variables = {"params": params, "batch_stats": stats}
        output: Any = program.networks.segmentor.apply(variables, image, mode="eval")
        return output.logits["main"]

    return jax.eval_shape(run, state.params["segmentor"], state.batch_stats, pictures)
