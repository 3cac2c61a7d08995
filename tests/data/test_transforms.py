import cv2
import numpy as np
import pytest

from mrm_jax.data import transforms


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((1052, 1914), (1280, 720), (704, 1280)),
        ((1052, 1914), (2560, 1440), (1407, 2560)),
        ((760, 1280), (1280, 760), (760, 1280)),
        ((1024, 2048), (1024, 512), (512, 1024)),
        ((1080, 1920), (960, 540), (540, 960)),
        ((1914, 1052), (1280, 720), (1280, 704)),
    ],
)
def test_keep_ratio_size_gives_the_published_sizes(size, box, expected):
    assert transforms.keep_ratio_size(*size, box) == expected


@pytest.mark.parametrize("size", [(5, 7), (8, 3), (16, 22), (31, 12)])
def test_labels_are_resized_to_the_source_index_floor_of_i_times_ratio(size):
    label = np.arange(11 * 17, dtype=np.uint8).reshape(11, 17)
    rows = np.minimum(np.arange(size[0]) * 11 // size[0], 10)
    columns = np.minimum(np.arange(size[1]) * 17 // size[1], 16)
    np.testing.assert_array_equal(transforms.resize_label(label, size), label[rows][:, columns])


def test_halving_a_picture_gives_the_rounded_mean_of_each_two_by_two_block():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    blocks = image.reshape(16, 2, 32, 2, 3).astype(int).sum((1, 3))
    np.testing.assert_array_equal(transforms.resize_image(image, (16, 32)), (blocks + 2) // 4)


def _slow_is_varied(label, ratio):
    pixels = [int(value) for value in label.ravel() if value != 255]
    counts = [pixels.count(value) for value in set(pixels)]
    return len(counts) > 1 and max(counts) < ratio * sum(counts)


def test_a_crop_is_varied_by_the_count_of_every_pixel_whatever_its_shares():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(400):
        shares = rng.dirichlet(np.full(5, rng.choice([0.1, 0.5, 5.0])))
        ids = np.array([0, 3, 18, 254, 255], np.uint8)
        label = rng.choice(ids, tuple(rng.integers(1, 40, 2)), p=shares)
        if rng.random() < 0.3:  # what is looked at first misleads
            label[::8, ::8] = rng.choice(ids)
        ratio = float(rng.choice([0.2, 0.5, 0.75, 0.95]))
        answers.append(transforms.is_varied(label, ratio))
        assert answers[-1] == _slow_is_varied(label, ratio)
    assert 100 < sum(answers) < 300


def test_varied_box_is_the_first_of_ten_boxes_that_passes_and_else_the_eleventh():
    late = unchecked = 0
    for seed in range(60):
        label = np.random.default_rng(seed).choice(
            np.array([3, 3, 3, 3, 3, 7, 255], np.uint8), (9, 12)
        )
        label[:, 4:] = 3
        boxes = np.random.default_rng((seed, 1))
        tried = [transforms.draw_box(boxes, label.shape, (4, 5)) for _ in range(11)]
        good = [_slow_is_varied(transforms.cut(label, box), 0.75) for box in tried[:10]]
        expected = tried[good.index(True)] if True in good else tried[10]
        late += True in good and not good[0]
        unchecked += True not in good
        rng = np.random.default_rng((seed, 1))
        assert transforms.varied_box(rng, label, (4, 5), 0.75) == expected
    assert late > 5
    assert unchecked > 0


def test_every_crop_offset_is_drawn_and_none_beyond_the_margin():
    rng = np.random.default_rng(0)
    boxes = [transforms.draw_box(rng, (6, 9), (4, 6)) for _ in range(400)]
    assert {(box.top, box.left) for box in boxes} == {(t, x) for t in range(3) for x in range(4)}


def test_padding_is_ignored_in_labels_invalid_in_targets_and_normalises_to_nothing():
    image = np.full((4, 5, 3), 7, np.uint8)
    rng = np.random.default_rng(0)
    padded, label = transforms.augment_source(
        image, np.ones((4, 5), np.uint8), rng, crop=(6, 8), max_ratio=1.0, flip=0.0
    )
    target, valid = transforms.augment_target(
        image, np.ones((4, 5), np.uint8), rng, crop=(6, 8), flip=0.0
    )
    inside = np.zeros((6, 8), bool)
    inside[:4, :5] = True
    np.testing.assert_array_equal(label, np.where(inside, 1, 255))
    np.testing.assert_array_equal(valid, inside)
    np.testing.assert_array_equal(padded, target)
    # One grey level is 1 / 57 after normalisation: the padding is nearer to 0 than that.
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    assert np.abs((padded[~inside] - mean) / std).max() < 1 / 57


def test_flip_moves_picture_label_and_validity_together():
    index = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = np.repeat(index[..., None], 3, -1)
    for seed in range(10):
        got, label = transforms.augment_source(
            image, index, np.random.default_rng(seed), crop=(4, 4), max_ratio=1.0, flip=0.5
        )
        np.testing.assert_array_equal(got[..., 0], label)
    flipped, valid = transforms.augment_target(
        image, index, np.random.default_rng(0), crop=(6, 8), flip=1.0
    )
    np.testing.assert_array_equal(valid, index[:, ::-1])
    np.testing.assert_array_equal(flipped[..., 1], index[:, ::-1])


def test_margins_count_pixels_of_the_picture_as_read_and_travel_with_it():
    image = np.zeros((1024, 2048, 3), np.uint8)
    _, valid = transforms.fit_target(image, (1024, 512), (30, 240, 30, 30))
    expected = np.zeros((512, 1024), np.uint8)
    expected[15:392, 15:1009] = 1
    np.testing.assert_array_equal(valid, expected)


def test_resizing_uses_opencv_without_antialiasing():
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    expected = cv2.resize(image, (13, 11), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(transforms.resize_image(image, (11, 13)), expected)


def test_the_resized_pixels_of_a_crop_are_those_of_the_whole_picture_resized():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = rng.integers(2, 90, 2)
        size = tuple(int(n * rng.uniform(0.3, 2.5)) + 1 for n in (height, width))
        crop = tuple(int(rng.integers(1, n + 1)) for n in size)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        box = transforms.draw_box(rng, size, crop)
        whole = transforms.cut(transforms.resize_image(image, size), box)
        np.testing.assert_array_equal(transforms.cut_resized(image, size, box), whole)


@pytest.mark.parametrize("box", [(64, 48), (150, 110)])
def test_a_sample_of_an_enlarged_picture_is_that_of_the_picture_enlarged_before(box):
    rng = np.random.default_rng(1)
    image, label = (
        rng.integers(0, 256, (75, 101, 3), np.uint8),
        rng.integers(0, 3, (75, 101), np.uint8),
    )
    fitted, plane = transforms.fit_source(image, label, box)
    whole = transforms.resize_image(image, plane.shape)
    assert (fitted.shape == image.shape) == (box == (150, 110))
    for seed in range(5):
        how = {"crop": (40, 50), "max_ratio": 0.9, "flip": 0.5}
        got = transforms.augment_source(fitted, plane, np.random.default_rng(seed), **how)
        expected = transforms.augment_source(whole, plane, np.random.default_rng(seed), **how)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
