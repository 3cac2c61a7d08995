"""The pieces of `machine/suite.py`, each run as `python -m mrm_jax.machine.suite_pieces NAME`: what
they find goes to stdout, an object a line, as soon as it is known.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax import children, recipes, sharding
from mrm_jax.config import Classes, Config, Data, input_stats
from mrm_jax.machine import chips, estimate, parity
from mrm_jax.machine.bench import costs, random_batch
from mrm_jax.models.build import build_segmentor
from mrm_jax.ops.normalise import normalise
from mrm_jax.train.step import build_step

VERSIONS = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "libtpu"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("nvidia-cublas-cu12", "nvidia-cublas", "torch", "transformers"),
)
CLASSES = 19
_TIMED_SECONDS = 8.0
_MOST_CALLS = 20


def tell(**parts: Any) -> None:
    """A line for the suite: `doing`, `found` or `error`."""
    print(json.dumps(parts), flush=True)


def device(small: bool) -> None:
    """What the device is and which versions are there; then the rate of a large product."""
    first = jax.devices()[0]
    chip = chips.of_device(first.device_kind)
    found = {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "chip": chip,
        "memory_bytes": (first.memory_stats() or {}).get("bytes_limit"),
        "platform_version": first.client.platform_version,
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name in ("XLA_FLAGS", "JAX_PLATFORMS") or name.startswith("XLA_PYTHON_CLIENT")
        },
    }
    tell(found=found)
    side = 256 if small else 8192
    for dtype in ("bfloat16", "float32"):
        tell(doing=f"a product of {dtype}, {side} x {side}")
        x = jnp.ones((side, side), dtype)
        times = _time(jax.jit(jnp.dot).lower(x, x).compile(), x, x)
        rate = 2 * side**3 / times["median"]
        tell(found={f"product_{dtype}": {"flops_per_second": rate, "share_of_peak": _share(rate)}})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _share(rate: float) -> float | None:
    """`rate` in operations a second over the published bfloat16 peak of the device, where known."""
    chip = chips.of_device(jax.devices()[0].device_kind)
    return None if chip is None else rate / chips.CHIPS[chip].bfloat16


def narrow(small: bool) -> None:
    """`parity` of one network after the other; small: of the first one."""
    stored, worst = parity.stored(), []
    for name in list(parity.NETWORKS)[: 1 if small else None]:
        for dtype in parity.TOLERANCES:
            tell(doing=f"{name} in {dtype}")
            row = parity.compared(parity.numbers(name, dtype), stored[name][dtype], dtype)
            worst += [] if row["equal"] else [f"{name} in {dtype} ({row['name']})"]
            tell(found={f"{name}/{dtype}": row})
    if worst:
        tell(error=f"differs from the CPU: {', '.join(worst)}")


def step(recipe: str, crop: int, small: bool, **model: Any) -> None:
    """Time, rate, share of peak and memory of a training step on one device."""
    config = _config(recipe, crop, small, dtype="bfloat16", remat="blocks", unroll=False, **model)
    mesh = sharding.mesh(1)
    program = build_step(config)
    tell(found={"recipe": recipe, "crop": config.data.crop, "batch": config.train.batch, **model})
    tell(doing="tracing")
    began = time.perf_counter()
    state, frozen = parity.drawn(config, program)
    batch = sharding.put_batch(random_batch(config), mesh)
    state, frozen = jax.device_put((state, frozen), sharding.replicated(mesh))
    traced = sharding.jit_step(program.train_step, state, mesh).trace(state, frozen, batch)
    flops = estimate.flops(traced.jaxpr)
    lowered = traced.lower()
    tell(found={"trace_seconds": time.perf_counter() - began, "flops": flops}, doing="compiling")
    began = time.perf_counter()
    compiled = lowered.compile(compiler_options=sharding.quick(mesh) if small else None)
    seconds = time.perf_counter() - began
    planned = costs(compiled)["peak_bytes"]
    tell(found={"compile_seconds": seconds, "planned_bytes": planned}, doing="running")
    held: dict[str, Any] = {"state": state}
    del state

    def call() -> Any:
        held["state"], metrics = compiled(held["state"], frozen, batch)
        return metrics

    times, metrics = _time(call), jax.device_get(call())
    rate = flops / times["median"]
    stats = jax.devices()[0].memory_stats() or {}
    tell(
        found={
            "seconds": times,
            "images_per_second": config.train.batch / times["median"],
            "flops_per_second": rate,
            "share_of_peak": _share(rate),
            "peak_bytes": stats.get("peak_bytes_in_use"),
            "finite": bool(metrics["finite"]),
            "loss": float(metrics["total/loss"]),
        }
    )
    if not metrics["finite"]:
        tell(error="the step is not finite")


def _config(recipe: str, crop: int, small: bool, **model: Any) -> Config:
    names = tuple(f"class{i}" for i in range(CLASSES))
    data = Data(classes=Classes(names, ((0, 0, 0),) * CLASSES), crop=(crop, crop))
    config = recipes.apply(Config(data=data), recipe)
    if small:
        config = parity.narrowed(config)
    return replace(config, model=replace(config.model, **model))


INFERENCE = "source_only,encoder=mit_b5,decoder=segformer"


def inference(small: bool) -> None:
    """Logits of one picture by a SegFormer of MiT-B5, in the three ways of multiplying."""
    size = (64, 128) if small else (512, 1024)
    options: Any = sharding.quick(sharding.mesh(1)) if small else None
    for dtype, precision in (("bfloat16", None), ("float32", None), ("float32", "highest")):
        config = _config(INFERENCE, 512, small, dtype=dtype, unroll=False)
        module = build_segmentor(config.model, CLASSES)
        name = dtype if precision is None else f"{dtype}_{precision}"
        tell(doing=f"compiling {name}")
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        shapes = jax.eval_shape(
            lambda m=module: m.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), mode="eval")
        )
        variables, stats = jax.device_put(parity.filled(shapes)), input_stats(config.model)

        def forward(variables: Any, image: Any, module: Any = module, stats: Any = stats) -> Any:
            return module.apply(variables, normalise(image, stats), mode="eval").logits["main"]

        began = time.perf_counter()
        with jax.default_matmul_precision(precision):
            compiled = jax.jit(forward).lower(variables, image).compile(compiler_options=options)
        seconds, given = time.perf_counter() - began, jax.device_put(image)
        times = _time(compiled, variables, given)
        tell(found={name: {"compile_seconds": seconds, "seconds": times}})


def inference_torch(small: bool) -> None:
    """The same network by transformers, where PyTorch is there."""
    try:
        torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        tell(found={"torch": f"not measured: {error}"})
        return
    where = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if where == "cuda" else "cpu"
    tell(found={"torch": torch.__version__, "device": name})
    sizes = {"depths": [1, 1, 1, 1]} if small else {"depths": [3, 6, 40, 3]}
    widths = [32, 64, 160, 256] if small else [64, 128, 320, 512]
    made = transformers.SegformerConfig(
        **sizes, hidden_sizes=widths, decoder_hidden_size=768, num_labels=CLASSES
    )
    network = transformers.SegformerForSemanticSegmentation(made).eval().to(where)
    image = torch.randn((1, 3, 64, 128) if small else (1, 3, 512, 1024), device=where)

    def timed(run: Any, image: Any) -> dict[str, float]:
        def call() -> None:
            with torch.no_grad():
                run(pixel_values=image)
            if where == "cuda":
                torch.cuda.synchronize()

        return _time(call)

    for dtype in ("bfloat16", "float32"):
        kind = getattr(torch, dtype)
        network, image = network.to(kind), image.to(kind)
        tell(doing=f"eager {dtype}")
        tell(found={f"eager_{dtype}": {"seconds": timed(network, image)}})
    for dtype in ("bfloat16", "float32"):
        kind = getattr(torch, dtype)
        network, image = network.to(kind), image.to(kind)
        tell(doing=f"compiling {dtype}")
        run = torch.compile(network)
        tell(found={f"compiled_{dtype}": {"seconds": timed(run, image)}})


def _time(call: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Seconds of a call, each waited for, after two that are not counted."""
    seconds: list[float] = []
    for _ in range(2):
        jax.block_until_ready(call(*arguments))
    until = time.perf_counter() + _TIMED_SECONDS
    while len(seconds) < _MOST_CALLS and (len(seconds) < 3 or time.perf_counter() < until):
        began = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - began)
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "count": len(seconds),
    }


def _fused(small: bool) -> None:
    if jax.default_backend() != "gpu":
        tell(found={"attention": f"not measured: {jax.default_backend()} has no cuDNN"})
        return
    step(DINOV2, 512, small, attention="fused")


DINOV2 = "dacs,mrm=true,encoder=dinov2_b14,decoder=vit_light"
MIT = "mrm=true,encoder=mit_b5,decoder=daformer"
PIECES: dict[str, Callable[[bool], None]] = {
    "device": device,
    "parity": narrow,
    "daformer": lambda small: step(f"daformer,{MIT}", 512, small),
    "dinov2": lambda small: step(DINOV2, 512, small),
    "mic": lambda small: step(f"mic,{MIT}", 1024, small),
    "inference": inference,
    "inference_torch": inference_torch,
    "dinov2_fused": _fused,
}
"""By name, as `suite.PIECES` lists them."""


def main(words: list[str]) -> int:
    """Runs a piece; an error is told as one of its findings."""
    children.follow()
    parser = argparse.ArgumentParser(prog="suite_pieces")
    parser.add_argument("name", choices=PIECES)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(words)
    tell(doing="starting")
    try:
        PIECES[given.name](given.small)
    except Exception as error:
        text = " ".join(str(error).split())
        tell(error=f"{type(error).__name__}: {text[:1000]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
