"""What is timed of PyTorch's side: inference, the loss and its gradient, a step, and the parts
under the names that `machine/parts.py` gives ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from mrm_jax.config import Config
from mrm_jax.machine.torch_peer import step as steps
from mrm_jax.machine.work import Call, Whats, Work, cores

# Modules of transformers' SegFormer -> what they are here; the first block stands for its stage.
_NAMES = (
    (r"encoder\.segformer\.stages\.(\d+)\.patch_embeddings", "encoder.patch_embed{}"),
    (r"encoder\.segformer\.stages\.(\d+)\.blocks\.0", "encoder.block{}"),
    (r"encoder\.segformer\.stages\.(\d+)\.layer_norm", "encoder.norm{}"),
    (r"encoder\.layer(\d+)\.0", "encoder.layer{}.first"),
    (r"encoder\.layer(\d+)\.1", "encoder.layer{}.rest"),
)
_INNER = {
    ".attention": ".attn",
    ".layernorm_before": ".norm1",
    ".layernorm_after": ".norm2",
    ".layer_norm": ".norm",
}


def named(path: str) -> str:
    """Our name, with slashes, of a module of the PyTorch network."""
    for pattern, ours in _NAMES:
        if found := re.match(pattern + r"(?=\.|$)", path):
            number = int(found[1]) + ("segformer" in pattern)
            path = ours.format(number) + _INNER.get(path[found.end() :], path[found.end() :])
            break
    return path.replace(".", "/")


def works(config: Config, whats: Whats) -> list[Work]:
    """What can be timed of a config, in the order of ours."""
    torch.set_num_threads(cores())
    training = steps.Training(config)
    found = []
    if "inference" in whats:
        found.append(Work("inference", make=lambda: Call(training.in_mode(False).classes)))
    if "forward" in whats:
        found.append(Work("forward", make=lambda: Call(training.in_mode(True).loss)))
    if "backward" in whats:
        found.append(Work("backward", make=lambda: Call(_gradient(training.in_mode(True)))))
    if "step" in whats:
        found.append(Work("step", make=lambda: Call(training.with_teacher().step)))
    if "parts" in whats:
        found += _modules(training) + _others(training.with_teacher())
    return found


def versions() -> dict[str, str]:
    """Of what computes."""
    import transformers  # pyright: ignore[reportMissingImports]

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _gradient(training: steps.Training) -> Callable[[], object]:
    def call() -> None:
        training.student.zero_grad()
        training.loss().backward()

    return call


def _modules(training: steps.Training) -> list[Work]:
    inputs: dict[str, tuple[nn.Module, Any, Any]] = {}

    def hook(name: str) -> Callable:
        def seen(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs.setdefault(name, (module, args, kwargs))

        return seen

    hooks = [
        module.register_forward_pre_hook(hook(named(path)), with_kwargs=True)
        for path, module in training.student.named_modules()
        if 1 <= named(path).count("/") <= 2 or path == "decoder"
    ]
    source, _, _ = training.batch
    with torch.no_grad():
        training.student(training.normalised(source))
    for each in hooks:
        each.remove()
    found = []
    for name, (module, args, kwargs) in inputs.items():
        call = _Module(module, args, kwargs)
        found.append(Work("forward", name, make=lambda call=call: Call(call.forward)))
        found.append(Work("backward", name, make=lambda call=call: Call(call.backward)))
    return found


class _Module:
    """A module with inputs of its own, forwards and with all gradients."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any):
        self.module, self.kwargs = module, kwargs
        self.args = [_detached(arg) for arg in args]

    def forward(self) -> Any:
        """The module's map."""
        return _first(self.module(*self.args, **self.kwargs))

    def backward(self) -> None:
        """That, and the gradients of parameters and maps."""
        self.module.zero_grad()
        for arg in self.args:
            for leaf in arg if isinstance(arg, tuple) else (arg,):
                if isinstance(leaf, torch.Tensor):
                    leaf.grad = None
        out = self.forward()
        out.backward(torch.ones_like(out))


def _detached(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tuple(_detached(one) for one in arg)
    if not isinstance(arg, torch.Tensor):
        return arg
    # Pictures, of 3 channels, need no gradient.
    return arg.detach().clone().requires_grad_(arg.is_floating_point() and arg.shape[1] != 3)


def _first(out: Any) -> Any:
    return out if isinstance(out, torch.Tensor) else _first(out[0])


def _others(training: steps.Training) -> list[Work]:
    """Loss, pseudo-labels, views, teacher and update."""
    source, target, label = training.batch
    config, label = training.config, label.long()
    with torch.no_grad():
        image, goal = training.normalised(source), training.normalised(target)
        logits = training.student(image)[0]
    leaf = logits.clone().requires_grad_()
    teach = steps.pseudo_label
    threshold, decay = config.method.threshold, config.method.ema_decay
    pseudo, weight = teach(logits, label.shape[1:], threshold)

    def gradient() -> None:
        leaf.grad = None
        steps.cross_entropy(leaf, label).backward()

    def update() -> Callable[[], object]:
        for parameter in training.student.parameters():
            parameter.grad = torch.ones_like(parameter)
        return training.optimizer.step

    calls: dict[tuple[str, str], Callable[[], Callable[[], object]]] = {
        ("forward", "loss"): lambda: lambda: steps.cross_entropy(logits, label),
        ("backward", "loss"): lambda: gradient,
        ("forward", "pseudo_label"): lambda: lambda: teach(logits, label.shape[1:], threshold),
        ("forward", "mix"): lambda: lambda: training.mixed(image, label, goal, pseudo, weight),
        ("forward", "augment"): lambda: lambda: training.augmented(image, always=True),
        ("forward", "ema"): lambda: (
            lambda: steps.average(training.teacher, training.student, 1, decay)
        ),
        ("forward", "optimizer"): update,
    }
    return [
        Work(what, part, make=lambda make=make: Call(make()))
        for (what, part), make in calls.items()
    ]
