"""What tells two sets of weights apart: hashes, counts, and what the encoder makes of a picture.

The hash of the tensors is over our layout, so it is the same for a .pth, its .safetensors copy and
a converted folder. The norms are for people: those of one network agree to their last digit or one
more on any machine, and a wrong file or half-loaded encoder is far off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from mrm_jax import config
from mrm_jax.convert.network import count_parameters, leaves
from mrm_jax.models.build import build_encoder
from mrm_jax.ops.normalise import normalise

PICTURE = "gradients and rectangles, 128 x 128 px, version 1"
_SIDE = 128
DIGITS = 5


def picture() -> np.ndarray:
    """The picture that encoders are compared on, u8[128, 128, 3]: never changed without a new name
    in `PICTURE`."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    image = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1)
    image[20:60, 16:40] = (220, 20, 60)
    image[70:120, 50:110] = (70, 130, 180)
    image[(x + y) % 32 < 4] //= 2
    return image.astype(np.uint8)


def tensors_sha256(tree: Mapping[str, Any]) -> str:
    """SHA-256 over paths, shapes and float32 bytes of all leaves, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves(tree).items()):
        value = np.asarray(leaf, np.dtype("<f4"))
        digest.update(f"{path} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def feature_norms(model: config.Model, tree: Mapping[str, Any]) -> list[float]:
    """The Euclidean norm of each encoder stage's features of `picture()`, averaged over positions,
    to `DIGITS` digits.

    Averaged, as a stage that ends in a LayerNorm gives every position nearly the same norm whatever
    its other weights are.
    tree: variables with an encoder under "encoder". On the CPU, in evaluation mode.
    """
    plain = replace(model, dtype="float32", remat="none", unroll=False)
    encoder = build_encoder(plain)
    variables = {name: found["encoder"] for name, found in tree.items() if "encoder" in found}
    with jax.default_device(_cpu()), jax.default_matmul_precision("highest"):
        image = normalise(picture()[None], config.input_stats(model))
        run = partial(encoder.apply, mode="eval")
        # Run once: unoptimised code compiles several times faster.
        options = {"xla_backend_optimization_level": 0} if _cpu().platform == "cpu" else None
        maps: Any = jax.jit(run, compiler_options=options)(variables, image)
    norms = [np.linalg.norm(np.asarray(x[0], np.float64).mean((0, 1))) for x in maps]
    return [float(f"{norm:.{DIGITS}g}") for norm in norms]


def _cpu() -> Any:
    """The CPU, where JAX was not told to do without."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def fingerprint(
    model: config.Model, tree: Mapping[str, Any], *, missing: Sequence[str] = (), **origin: Any
) -> dict[str, Any]:
    """What is printed and stored about weights, as JSON: `origin` (file, its hash, kind), hash and
    counts of the tensors, feature norms (absent where an encoder's leaf is missing)."""
    arrays, parameters = count_parameters(tree)
    found = {
        **origin,
        "tensors_sha256": tensors_sha256(tree),
        "tensors": arrays,
        "parameters": parameters,
    }
    if not any(path.startswith("encoder/") for path in missing):
        found |= {"picture": PICTURE, "feature_norms": feature_norms(model, tree)}
    return {**found, "missing": list(missing)} if missing else found


def fingerprint_lines(found: Mapping[str, Any]) -> list[str]:
    """A fingerprint as text, one fact a line."""
    shown = []
    for name, value in found.items():
        if name != "picture":
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            shown.append(f"{name.replace('_', ' ')}: {text}")
    return shown
