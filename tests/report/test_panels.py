"""Picture sheets hold the classes' exact colours, every view that exists, and its caption."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mrm_jax.config import Classes, Domain
from mrm_jax.machine.bench import random_batch
from mrm_jax.main import load_config
from mrm_jax.report import panels
from mrm_jax.train.hooks import sheet_name
from mrm_jax.train.step import build_step

CLASSES = Classes(names=("road", "sky", "car"), colours=((128, 64, 128), (70, 130, 180), (1, 2, 3)))
SIZE = (208, 208)  # a cell's width: pictures are neither enlarged nor thinned


def views(batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (batch, *SIZE)).astype(np.int32)
    label[:, :9] = 255
    weight = rng.random((batch, *SIZE)).astype(np.float32)
    return {
        "source_image": image,
        "source_label": label,
        "target_image": image[..., ::-1],
        "pseudo_label": np.roll(label, 5, axis=1),
        "pseudo_weight": weight,
        "mixed_image": image // 2,
        "mixed_label": np.roll(label, 9, axis=2),
        "mixed_weight": 1 - weight,
        "token_mask": rng.random((batch, 4, 8)) < 0.4,
        "reconstructed_prediction": np.roll(label, 30, axis=1),
        "prediction": np.roll(label, 60, axis=1),
        "ground_truth": np.roll(label, 90, axis=1),
    }


GIVEN = {panels.VIEWS[name] for name in views(1)}


def holds(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether `picture` stands somewhere in `sheet`, pixel for pixel."""
    height, width = picture.shape[:2]
    starts = np.argwhere((sheet[: 1 - height, : 1 - width] == picture[0, 0]).all(-1))
    return any((sheet[y : y + height, x : x + width] == picture).all() for y, x in starts)


def paint(label: np.ndarray) -> np.ndarray:
    """Colours looked up pixel by pixel."""
    table = dict(enumerate(CLASSES.colours))
    rows = [[table.get(int(i), (0, 0, 0)) for i in row] for row in label]
    return np.array(rows, np.uint8)


@pytest.fixture
def captions(monkeypatch) -> list[str]:
    """All text drawn while a test runs."""
    drawn: list[str] = []
    plain = ImageDraw.ImageDraw.text

    def text(self, place, words, *args, **kwargs):
        drawn.append(words)
        return plain(self, place, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn


@pytest.mark.parametrize("name", ["source_label", "pseudo_label", "prediction", "ground_truth"])
def test_a_class_map_stands_in_the_sheet_in_the_classes_colours(name):
    given = views(1)
    assert holds(panels.compose(given, CLASSES), paint(given[name][0]))


def test_a_picture_stands_in_the_sheet_unchanged():
    given = views()
    sheet = panels.compose(given, CLASSES)
    assert sheet.dtype == np.uint8
    for index in range(2):
        assert holds(sheet, given["mixed_image"][index])


def test_hidden_tokens_are_covered_and_the_others_show_the_target():
    given = views(1)
    image, mask = given["target_image"][0], given["token_mask"][0]
    covered = panels.cover(image, mask)
    for row in range(4):
        for column in range(8):
            at = np.s_[row * 52 : row * 52 + 52, column * 26 : column * 26 + 26]
            assert (covered[at] == image[at]).all() == (not mask[row, column])
    assert holds(panels.compose(given, CLASSES), covered)


def test_hidden_tokens_of_mic_are_covered_on_the_masked_picture():
    given = views(1)
    mask = given["token_mask"][0].repeat(52, 0).repeat(26, 1)
    given |= {"masked_image": 255 - given["source_image"], "masked_mask": 255 * mask[None]}
    sheet = panels.compose(given, CLASSES)
    assert holds(sheet, given["masked_image"][0])
    assert holds(sheet, panels.cover(given["masked_image"][0], mask))
    assert sheet_name("masked/mask") == "masked_mask"


@pytest.mark.parametrize("domain", ["source", "target"])
def test_passes_on_both_domains_show_their_masks_on_their_own_pictures(domain, captions):
    given = views(1)
    mask, guess = given.pop("token_mask"), given.pop("reconstructed_prediction")
    given |= {f"reconstructed_{domain}_mask": mask, f"reconstructed_{domain}_prediction": guess}
    sheet = panels.compose(given, CLASSES)
    assert holds(sheet, panels.cover(given[f"{domain}_image"][0], mask[0]))
    assert {f"mask of the {domain}", f"rebuilt {domain}"} <= set(captions)


def test_every_view_has_its_caption_once_an_image(captions):
    panels.compose(views(2), CLASSES, title="Training, step 7")
    for caption in panels.VIEWS.values():
        expected = 2 if caption in GIVEN else 0
        assert captions.count(caption) == expected, caption
    assert {"Training, step 7", "road", "sky", "car", "ignored"} <= set(captions)


def test_views_that_do_not_exist_are_left_out(captions):
    given = {name: views(1)[name] for name in ("source_image", "source_label", "prediction")}
    panels.compose(given, CLASSES)
    assert "prediction" in captions
    assert "target" not in captions
    assert "mask" not in captions


def test_large_pictures_are_thinned_and_small_ones_enlarged_without_new_colours():
    for side in (32, 700):
        label = np.random.default_rng(side).integers(0, 3, (1, side, side))
        sheet = panels.compose({"prediction": label}, Classes(CLASSES.names, CLASSES.colours))
        part = sheet[80:200, 30:200].reshape(-1, 3)
        assert {tuple(c) for c in np.unique(part, axis=0).tolist()} <= set(CLASSES.colours)


def test_weights_go_from_dark_to_light():
    shades = panels.heat(np.linspace(0, 1, 33)).astype(int).sum(-1)
    assert (np.diff(shades) > 0).all()
    np.testing.assert_array_equal(
        panels.heat(np.array([-1, np.nan, 2])), panels.heat(np.array([0, 0, 1]))
    )


@pytest.mark.parametrize("shape", [(), (2,), (2, *SIZE)])
def test_a_weight_may_be_one_number_one_an_image_or_one_a_pixel(shape, captions):
    given = views(2) | {"pseudo_weight": np.full(shape, 0.25, np.float32)}
    sheet = panels.compose(given, CLASSES)
    assert captions.count("25%") == 2
    assert holds(sheet, np.broadcast_to(panels.heat(np.float32(0.25)), (*SIZE, 3)))


def test_a_sheet_shows_the_masked_picture_and_the_detail_crop_of_a_step():
    """All that a step with every part hands out, but for weights that say nothing new."""
    path = Path(__file__).parents[2] / "configs" / "tiny.py"
    off = "--config.method.feature_distance.weight=0"
    config = load_config(
        [f"--config={path}:mic,mrm=true", off, "--config.data.rare_class.min_share=0.006"]
    )
    program = build_step(config)
    state = jax.eval_shape(program.init, jax.ShapeDtypeStruct((2,), np.uint32))
    frozen, batch = program.frozen(config), random_batch(config)
    found = jax.eval_shape(program.inspect, state, frozen, batch)
    assert found["source/detail_image"].shape == (2, 16, 32, 3)
    shown = {sheet_name(name) for name in found} - {"source_weight", "masked_weight"}
    assert {"masked_image", "source_detail_image", "token_mask"} <= shown
    assert shown <= panels.VIEWS.keys()


def test_float_pictures_and_unknown_views_are_refused():
    with pytest.raises(ValueError, match="mixed_image.*uint8"):
        panels.compose({"mixed_image": np.zeros((1, 8, 8, 3), np.float32)}, CLASSES)
    with pytest.raises(ValueError, match="nonsense"):
        panels.compose({"nonsense": np.zeros((1, 8, 8))}, CLASSES)


def test_a_sheet_is_saved_as_it_was_composed(tmp_path):
    given = views(1)
    path = panels.save_panels(given, CLASSES, tmp_path / "views" / "training_7.png", title="t")
    expected = panels.compose(given, CLASSES, title="t")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_the_error_map_is_red_where_wrong_and_black_where_ignored():
    image = np.full((2, 2, 3), 100, np.uint8)
    label = np.array([[0, 1], [255, 2]], np.uint8)
    prediction = np.array([[0, 2], [1, 2]], np.uint8)
    errors = panels.error_map(image, prediction, label, CLASSES)
    assert errors[1, 0].tolist() == [0, 0, 0]
    assert errors[0, 1, 0] > 2 * errors[0, 1, 1]
    assert errors[0, 0].tolist() == errors[1, 1].tolist() == [160, 160, 160]


def test_predictions_stand_beside_the_ground_truth_with_their_share_of_right_pixels(captions):
    given = views(1)
    label, image = given["source_label"][0], given["source_image"][0]
    wrong = np.where(label == 255, 0, (label + 1) % 3)
    wrong[: SIZE[0] // 2] = label[: SIZE[0] // 2]
    example = SimpleNamespace(name="camera_val_00001", image=image, label=label)
    sheet = panels.compose_evaluation([example], [wrong], CLASSES, teacher=[label])
    for part in (image, paint(wrong), paint(label)):
        assert holds(sheet, part)
    counted = (SIZE[0] // 2 - 9) / (SIZE[0] - 9)
    assert {"camera_val_00001", "student", "teacher", f"{counted:.1%} right"} <= set(captions)


def test_titles_say_where_pictures_are_drawn():
    drawn, own = Domain(kind="drawn"), Domain(path="pictures")
    assert panels.sheet_title("Training", own, drawn) == "Training · drawn data"
    assert panels.sheet_title("Training", own) == "Training"


def test_a_sheet_of_other_cells_has_pictures_of_the_width_that_is_asked_for():
    picture = views(1)["source_image"][0][:20, :24]
    sheet = panels.sheet([("", [panels.Cell("one", picture)])], CLASSES, "", 1, cell_px=96)
    assert holds(sheet, picture.repeat(4, axis=0).repeat(4, axis=1))
