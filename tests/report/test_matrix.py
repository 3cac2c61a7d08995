"""The picture of a confusion matrix: rows are true classes, columns predicted ones."""

import numpy as np

from mrm_jax.report.matrix import CELL, TOP, compose_matrix, save_matrix

NAMES = ("road", "car", "traffic sign")


def cells(picture):
    """Mean colour f[K,K,3] of each cell's upper left corner, where no figure stands."""
    left = picture.shape[1] - 16 - CELL * len(NAMES)
    at = [CELL * i for i in range(len(NAMES))]
    return np.array(
        [[picture[TOP + y : TOP + y + 6, left + x : left + x + 6].mean((0, 1)) for x in at]
         for y in at]
    )  # fmt: skip


def test_a_cell_is_the_stronger_coloured_the_larger_its_share_of_the_row():
    picture = compose_matrix(np.array([[600, 300, 100], [0, 50, 50], [0, 0, 0]]), NAMES, "s")
    strength = 255 - cells(picture).min(-1)
    assert strength[0, 0] > strength[0, 1] > strength[0, 2] > 0
    assert strength[1, 1] > strength[1, 0] == 0
    assert (strength[2] == 0).all(), "no label has this class"
    blue, red = cells(picture)[1, 1], cells(picture)[1, 2]
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_classes_of_any_name_and_number_make_a_picture_that_is_written(tmp_path):
    names = [f"a class with a long name {i}" for i in range(30)]
    path = save_matrix(np.eye(30, dtype=int), names, "t" * 90, tmp_path / "deep/m.png")
    assert path.stat().st_size > 0
    assert compose_matrix(np.zeros((1, 1)), ["x"], "").shape[2] == 3
