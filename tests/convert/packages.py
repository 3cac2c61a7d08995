"""An installed package with weights in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mrm_jax.convert import named
from mrm_jax.convert.reader import write_weights

NAME = "package://narrow"
LICENCE = {"licence": "MIT", "licence_source": "its LICENSE"}


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, state: Mapping[str, np.ndarray], kind: str
) -> Path:
    """The file of `state` in a package below `folder`, whose code ends whoever imports it; its
    weights are called `NAME`."""
    inside, info = folder / "narrow_weights", folder / "narrow_weights-1.0.dist-info"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("raise SystemExit")
    write_weights(inside / "narrow.pth", state, {})
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: narrow-weights\nVersion: 1.0\n")
    known = named.Packaged(
        install="--no-deps narrow_weights==1.0",
        file="narrow_weights/narrow.pth",
        sha256=hashlib.sha256((inside / "narrow.pth").read_bytes()).hexdigest(),
        kind=kind,
        licence=named.Licence(*LICENCE.values()),
    )
    monkeypatch.setattr(named, "PACKAGES", {"narrow": known})
    monkeypatch.syspath_prepend(str(folder))
    return inside / "narrow.pth"
