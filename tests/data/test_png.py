"""PNG files: read as OpenCV reads them."""

import io
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mrm_jax.data.prepared import png, records


def _scene(size, channels, seed=0):
    rng = np.random.default_rng(seed)
    shape = (*size, channels) if channels > 1 else size
    smooth = np.cumsum(rng.integers(-2, 3, shape), axis=0)
    return (smooth + rng.integers(0, 3, shape)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (61, 1), (64, 95), (300, 200)])
@pytest.mark.parametrize("filter_", ["NONE", "UP"])
def test_a_picture_that_was_written_is_read_to_the_bit(size, channels, filter_):
    array = _scene(size, channels)
    how = (cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_FILTER_{filter_}"))
    written = cv2.imencode(".png", array if channels == 1 else array[..., ::-1], how)[1].tobytes()
    read = png.decode_png(written)
    assert read is not None
    np.testing.assert_array_equal(read, array)


def test_records_are_written_so_that_the_fast_reader_reads_them():
    image, label = _scene((50, 70), 3), _scene((50, 70), 1)
    written = [records.encode_image(image, "png"), records.encode_label(label)]
    for content, expected in zip(written, (image, label), strict=True):
        np.testing.assert_array_equal(png.decode_png(content), expected)


@pytest.mark.parametrize("kind", ["paeth", "palette", "16 bits", "interlaced", "transparent"])
def test_what_else_png_can_do_is_left_to_a_general_decoder(kind):
    image = _scene((40, 30), 3)
    if kind == "palette":
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).convert("P").save(file, "png")
        assert png.decode_png(file.getvalue()) is None
        return
    if kind == "16 bits":
        written = cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes()
    elif kind == "transparent":
        written = cv2.imencode(".png", np.dstack([image, image[..., 0]]))[1].tobytes()
    else:
        filter_ = cv2.IMWRITE_PNG_FILTER_PAETH
        written = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_FILTER, filter_))[1].tobytes()
        if kind == "interlaced":
            written = written[:28] + b"\x01" + written[29:]
    assert png.decode_png(written) is None


@pytest.mark.parametrize("kind", ["cut", "changed", "short", "text"])
def test_a_damaged_file_is_an_error(kind):
    written = bytearray(records.encode_image(_scene((64, 80), 3), "png"))
    if kind == "cut":
        del written[len(written) // 2 :]
    elif kind == "changed":
        written[len(written) // 2] ^= 0xFF
    elif kind == "short":
        written[23] += 1  # one row more than there is
    else:
        written = bytearray(b"not a picture at all, but long enough to be one")
    with pytest.raises(ValueError, match=r".+"):
        png.decode_png(bytes(written))


def test_pixels_are_inflated_no_further_than_the_header_promises():
    image = records.encode_label(np.zeros((5, 4), np.uint8))
    at = image.index(b"IDAT")
    grown = zlib.compress(bytes(2**24))
    content = image[: at - 4] + len(grown).to_bytes(4, "big") + b"IDAT" + grown + bytes(4)
    tracemalloc.start()
    with pytest.raises(ValueError, match="it does not hold the 25 bytes of its size"):
        png.decode_png(content + image[-12:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
