"""The life of a trained network, stop after stop: drawn scenes that lie as downloads do are trained
on, scored, segmented as pictures and as a video, taken elsewhere in every format, submitted and
compared. What one stop finds is what the others found; details are tested where each verb is.

docs/development.md has the command that makes an environment in which no stop is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mrm_jax import main
from mrm_jax.data import labels
from mrm_jax.data.drawn.scenes import draw_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import downloads  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e

SIZE = (32, 64)
SCENES = 3
# A small network that transformers has, too: it takes four stages to have names in PyTorch. How it
# is trained changes nothing behind it, and one pass a step compiles soonest.
RECIPE = "source_only,encoder=small,decoder=segformer,crop=32x64"
OPTIONS = {
    **{f"data.{name}.resize": "(64,32)" for name in ("source", "target", "evaluation")},
    "model.encoder.dims": "(8,8,16,16)",
    "model.encoder.heads": "(1,1,2,2)",
    "model.encoder.depths": "(1,1,1,1)",
    "model.decoder.channels": 16,
    "optimizer.learning_rate": 5e-3,
    "train.steps": 80,
    "train.log_every": 40,
    "train.eval_every": 80,
    "train.checkpoint_every": 80,
    "train.panels_every": 1000,
    "train.optimise": "False",
    "evaluation.selection_pictures": 0,
}
# Which label id of Cityscapes the classes of drawn scenes have.
RAW_IDS = np.array(
    [labels.CITYSCAPES_IDS[labels.CITYSCAPES.names.index(n)][0] for n in labels.DRAWN.names],
    np.uint8,
)
# What the program of an export needs besides this package. Nothing here needs torch.
NEEDS = {
    "stablehlo": ("flatbuffers",),
    "onnx": ("jax2onnx", "onnxruntime"),
    "huggingface": ("torch", "transformers"),
    "torch": (),
}

# run.py of a folder for transformers where they are not installed: this package reads the files.
OURS = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from mrm_jax.export.reopen import segmenter
ids, _ = segmenter(Path(sys.argv[1]))(np.asarray(Image.open(sys.argv[2]))[None])
Image.fromarray(ids[0]).save(sys.argv[3])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """gta/ and cityscapes/ as the downloads unpack; the scenes of val are test's, too."""
    root = tmp_path_factory.mktemp("data")
    for k in range(8):
        picture, label = draw_scene(0, "train", k, size=SIZE, look="rendered")
        downloads.save_image(root / f"gta/images/{k:05d}.png", picture)
        downloads.save_grey(root / f"gta/labels/{k:05d}.png", RAW_IDS[label])
    for split, city in (("train", "ulm"), ("val", "lindau"), ("test", "berlin")):
        for k in range(SCENES):
            drawn = "train" if split == "train" else "val"
            picture, label = draw_scene(0, drawn, k, size=SIZE, look="camera")
            stem = f"{split}/{city}/{city}_{k:06d}_000019"
            place = root / "cityscapes"
            downloads.save_image(place / f"leftImg8bit/{stem}_leftImg8bit.png", picture)
            if split == "val":
                downloads.save_grey(place / f"gtFine/{stem}_gtFine_labelIds.png", RAW_IDS[label])
    return root


def train(workdir: Path, data: Path, *more: str) -> int:
    paths = (f"data.source.path={data / 'gta'}", f"data.target.path={data / 'cityscapes'}")
    options = (*paths, *(f"{name}={value}" for name, value in OPTIONS.items()), *more)
    words = [f"--config=gta_to_cityscapes:{RECIPE}", f"--workdir={workdir}"]
    return main.run([*words, *(f"--config.{option}" for option in options)])


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "first"
    assert train(workdir, data) == 0
    return workdir


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory) -> list[np.ndarray]:
    """The train ids of val that `evaluate` scored, a scene each."""
    (trained / "evaluation.json").unlink()  # training's own
    folder = tmp_path_factory.mktemp("predictions")
    assert main.run(["evaluate", f"--workdir={trained}", f"--save_predictions={folder}"]) == 0
    return images(folder.rglob("*.png"))


def images(paths) -> list[np.ndarray]:
    """PNGs as they are stored, by name."""
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(paths)]


def scores(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


def test_evaluate_finds_what_the_run_has_logged(trained, scored):
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    found = scores(trained)
    assert found["step"] == last["step"] == OPTIONS["train.steps"]
    assert found["mIoU"] == last["eval/student/mIoU"]
    assert f">{100 * found['mIoU']:.1f}<small>% mIoU" in (trained / "report.html").read_text()
    # A network that has learnt a little, or every stop would agree on a single class.
    assert len(np.unique(scored)) >= 3
    assert found["pixel_accuracy"] > 0.3


@pytest.fixture(scope="module")
def predicted(trained, data, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("predicted")
    pictures = data / "cityscapes/leftImg8bit/val"
    assert main.run(["predict", str(pictures), f"--checkpoint={trained}", f"--to={to}"]) == 0
    return to


def test_predict_finds_what_evaluate_has_scored(predicted, scored):
    found = images(predicted.rglob("*_leftImg8bit.png"))
    np.testing.assert_array_equal(found, scored)


def test_a_video_of_these_pictures_is_segmented_as_they_are(
    trained, predicted, scored, data, tmp_path
):
    drive = tmp_path / "drive.mkv"
    with av.open(str(drive), "w") as container:
        stream = container.add_stream("ffv1", rate=10)  # loses nothing
        stream.height, stream.width, stream.pix_fmt = *SIZE, "bgr0"
        for picture in images((data / "cityscapes/leftImg8bit/val").rglob("*.png")):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    words = ["predict", str(drive), f"--checkpoint={trained}"]
    assert main.run([*words, f"--to={tmp_path / 'a'}", "--frames", "--only", "ids"]) == 0
    np.testing.assert_array_equal(images((tmp_path / "a/drive_frames").iterdir()), scored)
    assert main.run([*words, f"--to={tmp_path / 'b'}"]) == 0
    with av.open(str(tmp_path / "b/drive_overlay.mp4")) as container:
        frames = [f.to_ndarray(format="bgr24") for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    overlays = images(predicted.rglob("*_overlay.png"))
    assert np.shape(frames) == (SCENES, *SIZE, 3)
    apart = [[np.abs(f.astype(int) - o).mean() for o in overlays] for f in frames]
    assert np.argmin(apart, axis=1).tolist() == list(range(SCENES))  # H.264 loses some


@pytest.fixture(params=NEEDS)
def form(request) -> str:
    if request.param == "onnx" and (lacking := [n for n in NEEDS["onnx"] if not find_spec(n)]):
        pytest.skip(f"{lacking[0]} is of the extra export, which is not in dev")
    return request.param


def test_an_export_finds_in_another_process_what_predict_finds(
    form, trained, scored, data, tmp_path
):
    to = tmp_path / "street net"
    assert main.run(["export", f"--checkpoint={trained}", f"--format={form}", f"--to={to}"]) == 0
    card, found = (to / "README.md").read_text(), scores(trained)
    for number, name in enumerate(labels.CITYSCAPES.names):
        assert f"| {number} | {name} | " in card
    assert f"| mIoU | {found['mIoU']:.1%} |" in card
    assert found["protocol"]["sentence"] in card
    program = [sys.executable, str(to / "run.py")]
    if any(find_spec(name) is None for name in NEEDS[form]):  # Hugging Face's
        program = [sys.executable, "-c", OURS, str(to)]
    picture = next((data / "cityscapes/leftImg8bit/val").rglob("*_000000_*.png"))
    subprocess.run([*program, str(picture), str(tmp_path / "ids.png")], check=True)
    (ids,) = images([tmp_path / "ids.png"])
    # float32 sums in another order, and transformers' epsilon: a pixel may be a tie.
    assert (ids != scored[0]).mean() < 0.002


def test_a_zip_for_a_server_passes_its_check_and_holds_these_predictions(
    trained, scored, data, tmp_path
):
    zipped, download = tmp_path / "mine.zip", data / "cityscapes"
    words = ["submit", "cityscapes", f"--from={download}"]
    assert main.run([*words, f"--checkpoint={trained}", f"--to={zipped}"]) == 0
    assert main.run([*words, f"--check={zipped}"]) == 0
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(tmp_path / "results")
    table = np.full(256, 255, np.uint8)
    for train_id, (raw,) in enumerate(labels.CITYSCAPES_IDS):
        table[raw] = train_id
    found = images((tmp_path / "results").rglob("berlin_*.png"))
    np.testing.assert_array_equal(table[np.array(found)], scored)


def test_two_runs_are_compared_on_one_page_by_name_and_score(trained, scored, data, tmp_path):
    second, page = trained.parent / "slower", tmp_path / "page.html"
    # A traced number: the program of the first run.
    assert train(second, data, "optimizer.learning_rate=1e-4") == 0
    assert main.run(["report", "--compare", str(trained), str(second), f"--to={page}"]) == 0
    rows = re.findall(r"<tr><td>(first|slower)</td><td>0</td><td>([\d.]+)</td>", page.read_text())
    assert rows == [(run.name, f"{100 * scores(run)['mIoU']:.1f}") for run in (trained, second)]
    assert rows[0][1] != rows[1][1]
