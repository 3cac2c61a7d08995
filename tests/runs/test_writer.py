import json
import math

import numpy as np
import pytest

from mrm_jax.runs.writer import METRICS, TensorBoard, Writer, cut_back


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_one_json_object_with_its_step(tmp_path):
    writer = Writer(tmp_path, step=0)
    writer.write(1, {"source/ce": np.float32(0.5), "alarm/share/car": "class car: gone"})
    writer.write(2, {"perf/memory_bytes": 3.0})
    expected = [
        {"step": 1, "source/ce": 0.5, "alarm/share/car": "class car: gone"},
        {"step": 2, "perf/memory_bytes": 3.0},
    ]
    assert _lines(tmp_path / METRICS) == expected  # before close: a reader sees lines at once
    writer.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_is_opened_with_the_second_line_and_has_both(tmp_path):
    writer = Writer(tmp_path, step=0)
    writer.write(0, {"perf/compile_seconds": 3.0})
    assert not list(tmp_path.glob("events.out.tfevents.*"))
    writer.write(1, {"source/ce": 1.0})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert content.index(b"perf/compile_seconds") < content.index(b"source/ce")


def test_a_line_that_follows_a_picture_is_not_held_back(tmp_path):
    board = TensorBoard(tmp_path, 0)
    board.flush()
    board.write(1, {"source/ce": 1.0})
    board.close("finished")
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"source/ce" in events.read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_a_number_that_is_not_finite_is_null_and_the_line_is_json(tmp_path, value):
    writer = Writer(tmp_path, step=0)
    writer.write(1, {"source/ce": value})
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    line = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert line == {"step": 1, "source/ce": None}


def test_lines_after_the_restored_step_and_the_torn_one_are_dropped(tmp_path):
    path = tmp_path / METRICS
    whole = "".join(json.dumps({"step": step, "x": step}) + "\n" for step in (1, 2, 2, 3, 4))
    path.write_text(whole + '{"step": 1, "tor')
    assert cut_back(path, 2) == 3
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:3])


def test_a_torn_line_of_an_early_step_is_dropped_too(tmp_path):
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x": 0.\xff')
    cut_back(path, 9)
    assert path.read_text() == '{"step": 1}\n'


def test_a_restart_goes_on_in_the_same_file(tmp_path):
    for start in (0, 2):
        writer = Writer(tmp_path, step=start)
        for step in range(start + 1, start + 4):
            writer.write(step, {"x": float(start)})
        writer.close()
    assert [line["step"] for line in _lines(tmp_path / METRICS)] == [1, 2, 3, 4, 5]


def test_cutting_back_a_missing_file_changes_nothing(tmp_path):
    assert cut_back(tmp_path / METRICS, 3) == 0
    assert not (tmp_path / METRICS).exists()


def test_a_metrics_file_that_is_a_link_appends_to_no_other_file(tmp_path):
    (tmp_path / "precious").write_text('{"step": 1}\n')
    (tmp_path / "run").mkdir()
    for target in ("precious", "nowhere"):
        (tmp_path / "run" / METRICS).unlink(missing_ok=True)
        (tmp_path / "run" / METRICS).symlink_to(tmp_path / target)
        writer = Writer(tmp_path / "run", step=1)
        writer.write(2, {"source/ce": 0.5})
        writer.close()
        assert not (tmp_path / "run" / METRICS).is_symlink()
    assert (tmp_path / "precious").read_text() == '{"step": 1}\n'
    assert not (tmp_path / "nowhere").exists()


def test_pictures_that_are_there_go_to_tensorboard(tmp_path):
    from PIL import Image

    Image.new("RGB", (24, 16), (200, 30, 60)).save(tmp_path / "sheet.png")
    writer = Writer(tmp_path, step=0)
    writer.picture(3, "views/training", tmp_path / "sheet.png")
    writer.picture(3, "views/evaluation", tmp_path / "nowhere.png")
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"views/training" in content
    assert b"\x89PNG" in content
    assert b"views/evaluation" not in content
