"""Data that were moved are the same data; other pictures of the same names are not."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from drawn_config import drawn_config

from mrm_jax.config import Domain
from mrm_jax.data.identity import identities


def _write(root, value=0):
    for name in ("images/town/a.png", "images/b.png", "labels/town/a.png", "labels/b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(len(name) + value).integers(0, 9, (32, 64), np.uint8)
        cv2.imwrite(str(root / name), picture)


def _config(root):
    own = Domain(path=str(root), images="images", labels="labels")
    return drawn_config(
        source=own, target=replace(own, labels=None), evaluation=replace(own, path=None)
    )


def test_a_copy_of_a_folder_holds_the_same_data_and_drawn_sets_have_no_place(tmp_path):
    _write(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    found = identities(_config(tmp_path / "here"))
    assert found.keys() == {"source", "target", "evaluation"}
    assert found == identities(_config(tmp_path / "there"))
    assert identities(drawn_config()) == {}
    assert identities(_config(tmp_path / "nowhere")) == {}


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda root: (root / "images/b.png").write_bytes(b"x"), {*("source", "target")}),
        (lambda root: (root / "labels/b.png").write_bytes(b"x"), {"source"}),
        (lambda root: (root / "images/b.png").rename(root / "images/c.png"), {"target"}),
    ],
)
def test_other_files_are_other_data_of_the_sets_that_read_them(tmp_path, change, differ):
    _write(tmp_path)
    before = identities(_config(tmp_path))
    change(tmp_path)
    after = identities(_config(tmp_path))
    assert {name for name in ("source", "target") if before[name] != after.get(name)} >= differ
    assert ("target" in differ) == (before["target"] != after["target"])
