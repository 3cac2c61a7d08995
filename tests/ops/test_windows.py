"""The window grid, against counts worked out by hand and against brute force."""

import numpy as np
import pytest

from mrm_jax.ops.windows import grid, starts


@pytest.mark.parametrize(
    ("size", "tops", "lefts"),
    [
        ((1024, 2048), [0], [0, 512, 1024]),
        # 1080 needs a second row, and both last windows are shifted back to end at the border.
        ((1080, 1920), [0, 56], [0, 512, 896]),
        ((1024, 1024), [0], [0]),
        ((500, 2049), [0], [0, 512, 1024, 1025]),
    ],
)
def test_windows_of_1024_every_512_lie_where_the_papers_put_them(size, tops, lefts):
    corners, extent = grid(size, (1024, 1024), (512, 512))
    assert corners.tolist() == [[top, left] for top in tops for left in lefts]
    assert extent == (min(size[0], 1024), min(size[1], 1024))


def test_every_pixel_is_covered_and_no_window_leaves_the_picture():
    for length in range(1, 30):
        for window in range(1, 12):
            for stride in range(1, window + 1):
                covered = np.zeros(length, int)
                for start in starts(length, window, stride):
                    assert 0 <= start <= max(0, length - window)
                    covered[start : start + min(window, length)] += 1
                assert covered.min() >= 1, (length, window, stride)


def test_gaps_and_empty_windows_are_refused():
    with pytest.raises(ValueError, match="stride 5 is larger than the window 4"):
        starts(10, 4, 5)
    with pytest.raises(ValueError, match="have to be positive"):
        starts(10, 4, 0)
