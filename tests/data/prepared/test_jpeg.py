"""Parts of a JPEG: those of the whole picture, to the bit."""

import cv2
import numpy as np
import pytest

from mrm_jax.data import transforms
from mrm_jax.data.prepared import jpeg, records


def _image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


# One unit more and less than whole units and intervals, and sizes of the data sets' aspect.
@pytest.mark.parametrize("size", [(40, 64), (33, 127), (113, 130), (95, 256), (131, 239), (16, 64)])
def test_a_part_holds_the_pixels_of_the_whole_picture(size):
    content = records.encode_image(_image(*size), "jpeg95")
    whole = records.decode_image(content)
    parts = jpeg.parts(content)
    assert parts is not None
    assert (parts.shape, parts.nbytes) == (whole.shape, whole.nbytes)
    np.testing.assert_array_equal(np.asarray(parts), whole)
    rng = np.random.default_rng(1)
    for _ in range(60):
        top, left = (int(rng.integers(0, n)) for n in size)
        bottom, right = (
            int(rng.integers(k + 1, n + 1)) for k, n in zip((top, left), size, strict=True)
        )
        box = transforms.Box(top, left, bottom - top, right - left)
        np.testing.assert_array_equal(transforms.cut(parts, box), transforms.cut(whole, box))


def test_little_more_than_the_part_is_decoded(monkeypatch):
    parts = jpeg.parts(records.encode_image(_image(512, 1024), "jpeg95"))
    assert parts is not None
    decoded = []
    real = cv2.imdecode
    monkeypatch.setattr(
        cv2, "imdecode", lambda *given: decoded.append(real(*given).shape) or real(*given)
    )
    assert parts[100:200, 300:500].shape == (100, 200, 3)
    assert decoded == [(112, 256, 3)]  # rows 96 to 208, columns 256 to 512


def test_restarts_change_no_pixel_and_little_of_the_size():
    image = _image(256, 512)
    bgr = np.ascontiguousarray(image[..., ::-1])
    plain = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes()
    ours = records.encode_image(image, "jpeg95")
    np.testing.assert_array_equal(records.decode_image(ours), records.decode_image(plain))
    assert len(ours) < 1.03 * len(plain)
    assert jpeg.parts(plain) is None


@pytest.mark.parametrize(
    "how",
    [
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    ],
)
def test_a_file_that_is_coded_otherwise_is_read_as_a_whole(how):
    restart = () if how[0] == cv2.IMWRITE_JPEG_RST_INTERVAL else (cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
    content = cv2.imencode(".jpg", _image(64, 128), (*how, *restart))[1].tobytes()
    assert jpeg.parts(content) is None


@pytest.mark.parametrize(
    ("width", "units"), [(1914, 8), (2048, 8), (96, 6), (112, 7), (130, 9), (17 * 16, 0)]
)
def test_intervals_divide_a_row(width, units):
    assert jpeg.interval(width) == units


def test_a_picture_that_no_interval_divides_is_still_stored():
    image = _image(64, 17 * 16)
    content = records.encode_image(image, "jpeg95")
    assert jpeg.parts(content) is None
    assert np.abs(records.decode_image(content).astype(int) - image).mean() < 5


def test_a_file_that_lost_a_part_is_an_error():
    content = records.encode_image(_image(64, 128), "jpeg95")
    at = content.index(b"\xff\xd1")
    for damaged in (
        content[:at] + content[at + 2 :],
        content[:at] + b"\xff\xd3" + content[at + 2 :],
        content[:-2],
    ):
        with pytest.raises(ValueError, match="its restart intervals are not the 4 of its size"):
            jpeg.parts(damaged)
    assert jpeg.parts(b"\xff\xd8\xff") is None
