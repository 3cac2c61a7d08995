"""Writes the files beside it by torch: `python tests/convert/torch_files/make.py`. 2.13 wrote them.

`wanted.npz` holds what torch itself makes of the tensors, floats as float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def tensors() -> dict[str, Any]:
    """What lies in memory in every way that a network's tensors may."""
    torch.manual_seed(0)
    base = torch.randn(4, 3, 6)
    shared = torch.arange(20, dtype=torch.float32)
    attributed = torch.nn.Parameter(torch.randn(3))
    attributed.note = "kept"
    return {
        "plain": torch.randn(2, 3),
        "turned": base.transpose(0, 2),
        "stepped": base[1:, :, ::2],
        "channels_last": torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last),
        "repeated": torch.randn(3, 1).expand(3, 4),
        "shared_first": shared[:7],
        "shared_last": shared[5:].view(3, 5),
        "scalar": torch.tensor(2.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "attributed": attributed,
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "float8_e4m3fn": torch.randn(3).to(torch.float8_e4m3fn),
        "float8_e5m2": torch.randn(3).to(torch.float8_e5m2),
        **{
            str(kind).removeprefix("torch."): torch.tensor([0, 1, 100]).to(kind)
            for kind in (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16)
        },
        "bool": torch.tensor([True, False]),
    }


def main() -> None:
    """All files."""
    found = tensors()
    plain = {n: x.detach() for n, x in found.items()}
    floats = {n: x.float() if x.is_floating_point() else x for n, x in plain.items()}
    np.savez_compressed(HERE / "wanted.npz", **{n: x.numpy() for n, x in floats.items()})
    meta = {"iter": np.int64(40_000), "loss": np.float64(0.5), "CLASSES": ("road", "sky")}
    beside = {
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 6e-5, "params": [0, 1]}]},
        "size": torch.Size([2, 3]), "kind": torch.bfloat16, "place": torch.device("cuda", 1),
        "set": {1, 2}, "raw": b"\0\xff",
    }  # fmt: skip
    file = {"state_dict": torch.nn.Module().state_dict() | found, "meta": meta, **beside}
    torch.save(file, HERE / "zip.pth")
    torch.save(file, HERE / "zip_protocol4.pth", pickle_protocol=4)
    # torch 2.13 writes float8 and uint16 in the legacy format and cannot read them there.
    older = {n: x for n, x in found.items() if not n.startswith(("float8", "uint16"))}
    torch.save(
        file | {"state_dict": older}, HERE / "legacy.pth", _use_new_zipfile_serialization=False
    )


if __name__ == "__main__":
    main()
