import numpy as np
import pytest

from mrm_jax.data import labels
from mrm_jax.data.drawn import scenes

LOOKS = ("rendered", "camera")


def _label_shares(look, count=60):
    counts = np.zeros(len(labels.DRAWN.names))
    for index in range(count):
        label = scenes.draw_scene(3, "train", index, size=(64, 128), look=look)[1]
        counts += np.bincount(label.ravel(), minlength=len(counts))
    return counts / counts.sum()


@pytest.mark.parametrize("look", LOOKS)
def test_a_scene_depends_on_its_arguments_alone(look):
    first = [scenes.draw_scene(1, "train", i, look=look) for i in range(3)]
    again = [scenes.draw_scene(1, "train", i, look=look) for i in (2, 0, 1)]
    for scene, other in zip(first, (again[1], again[2], again[0]), strict=True):
        np.testing.assert_array_equal(scene[0], other[0])
        np.testing.assert_array_equal(scene[1], other[1])


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (97, 201), (200, 120)])
def test_pictures_and_labels_have_the_size_asked_for(size):
    for look in LOOKS:
        image, label = scenes.draw_scene(0, "val", 5, size=size, look=look)
        assert image.shape == (*size, 3)
        assert label.shape == size
        assert image.dtype == label.dtype == np.uint8
        assert label.max() < len(labels.DRAWN.names)


def test_seed_split_look_and_index_give_different_scenes():
    labels_of = [
        scenes.draw_scene(*arguments, look=look)[1]
        for arguments in ((0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0))
        for look in LOOKS
    ]
    different = [(a != b).any() for k, a in enumerate(labels_of) for b in labels_of[:k]]
    assert all(different)


def test_the_gap_changes_the_camera_picture_but_never_its_label():
    for index in range(5):
        near, far = (scenes.draw_scene(0, "train", index, look="camera", gap=g) for g in (0.1, 0.9))
        np.testing.assert_array_equal(near[1], far[1])
        assert np.abs(near[0].astype(int) - far[0]).mean() > 5
        plain = (
            scenes.draw_scene(0, "train", index, gap=0.1),
            scenes.draw_scene(0, "train", index, gap=0.9),
        )
        np.testing.assert_array_equal(plain[0][0], plain[1][0])


def test_looks_share_class_frequencies_and_every_class_occurs():
    rendered, camera = (_label_shares(look) for look in LOOKS)
    # 60 scenes of each: single classes wander by a third or so, total variation by a few percent.
    assert 0.5 * np.abs(rendered - camera).sum() < 0.08
    assert min(rendered.min(), camera.min()) > 0.003


def test_looks_differ_in_colour_and_light():
    saturation = {}
    for look in LOOKS:
        images = [scenes.draw_scene(0, "train", i, look=look)[0].astype(float) for i in range(30)]
        spread = [(image.max(-1) - image.min(-1)).mean() for image in images]
        saturation[look] = np.mean(spread)
    assert saturation["rendered"] > 1.5 * saturation["camera"]


def test_a_scene_too_small_to_draw_is_refused():
    with pytest.raises(ValueError, match=r"size is \(16, 64\)"):
        scenes.draw_scene(0, "train", 0, size=(16, 64))
