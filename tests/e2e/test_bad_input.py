"""A user's mistake is one line that names it, with exit code 2, before anything is compiled."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mrm_jax import main
from mrm_jax.errors import UsageError
from mrm_jax.runs import workdir

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


def _words(workdir, **overrides):
    config = ROOT / "configs" / "tiny.py"
    start = [f"--config={config}", f"--workdir={workdir}"]
    return start + [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()]


def _pictures(folder, count, *, labels=False, values=(0, 1)):
    """Pictures 0.png, 1.png, ... of 40 x 80 px, and labels of `values` beside them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        picture = rng.integers(0, 256, (40, 80, 3), np.uint8)
        if labels:
            picture = rng.choice(np.asarray(values, np.uint8), (40, 80))
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


def _source(root, *, values=(0, 1)):
    _pictures(root / "images", 2)
    _pictures(root / "labels", 2, labels=True, values=values)
    kind = {"data__source__kind": "folder", "data__source__path": root}
    return kind | {"data__source__images": "images", "data__source__labels": "labels"}


def _target(path):
    return {"data__target__kind": "folder", "data__target__path": path}


def _refused(tmp_path, says, *, usable=True, **overrides):
    with pytest.raises(UsageError, match=says) as found:
        main.run(_words(tmp_path / "run", **overrides))
    assert "\n" not in str(found.value)
    config = main.load_config(_words(tmp_path / "run")[:1])
    if usable:
        with workdir.opened_workdir(tmp_path / "run", config):
            pass  # the corrected command may use it


def test_a_missing_folder_is_named(tmp_path):
    _refused(tmp_path, r"config\.data\.target.*nowhere", **_target(tmp_path / "nowhere"))


def test_an_empty_target_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    _refused(tmp_path, r"config\.data\.target.*empty", **_target(tmp_path / "empty"))


def test_an_unreadable_picture_is_named(tmp_path):
    _pictures(tmp_path / "town", 1)
    (tmp_path / "town" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n and then the disk was pulled")
    _refused(tmp_path, r"town/0\.png", **_target(tmp_path / "town"))


def test_a_label_id_outside_the_table_is_named_with_its_file(tmp_path):
    _refused(tmp_path, r"labels/[01]\.png.*200", **_source(tmp_path / "set", values=(0, 200)))


def test_a_label_of_another_size_than_its_picture_is_named(tmp_path):
    overrides = _source(tmp_path / "set")
    for index in range(2):
        path = tmp_path / "set" / "labels" / f"{index}.png"
        cv2.imwrite(str(path), np.zeros((20, 40), np.uint8))
    _refused(tmp_path, r"40 x 80 px.*20 x 40 px", **overrides)


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    _refused(tmp_path, r"holds other things", usable=False)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_the_command_line_answers_with_one_line_and_exit_code_2(tmp_path, refusal):
    words = _words(tmp_path / "run", **_target(tmp_path / "nowhere"))
    line = refusal(words)
    assert "nowhere" in line
