"""Videos through `predict`: file in, overlay video out, or pictures of its frames."""

import csv
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from refusals import refused

import mrm_jax
from mrm_jax.main import run

RATE = Fraction(12)


def film(path, size, frames, times=None):
    """A video of a bright square that moves over noise."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE, options={"crf": "10", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for i in range(frames):
            picture = rng.integers(0, 99, (*size, 3), np.uint8)
            picture[5:25, 3 * i : 3 * i + 20] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times or range(frames))[i], 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path):
    """(codec, frames u8[n,H,W,3], their times in s)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float(frame.pts * stream.time_base) for frame in frames]
        return stream, [frame.to_ndarray(format="rgb24") for frame in frames], times


@pytest.mark.parametrize(
    ("size", "codec", "end"), [((48, 64), "h264", "mp4"), ((47, 65), "vp9", "webm")]
)
def test_a_video_becomes_an_overlay_video_of_its_rate_size_and_length(
    workdir, tmp_path, size, codec, end
):
    source = film(tmp_path / "drive.webm", size, 5, times=[0, 1, 2, 4, 5])
    words = ["predict", str(source), "--checkpoint", str(workdir), "--to", str(tmp_path / "out")]
    assert run(words) == 0
    _, frames, times = read(source)
    stream, overlays, found = read(tmp_path / f"out/drive_overlay.{end}")
    assert stream.codec_context.name.replace("libx264", "h264").startswith(codec)
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert (stream.height, stream.width) == size
    # WebM keeps times in whole milliseconds.
    np.testing.assert_allclose(np.array(found) - found[0], np.array(times) - times[0], atol=2e-3)
    net = mrm_jax.load(workdir)
    for frame, overlay in zip(frames, overlays, strict=True):
        difference = net.predict(frame).overlay().astype(int) - overlay
        # Colours at half the resolution, quantised.
        assert np.abs(difference).mean() < 20
    with (tmp_path / "out/class_shares.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert sum(float(row[name]) for name in net.classes) == pytest.approx(1, abs=1e-5)
    assert run(words) == 0, "a second call finds all there"


def test_frames_become_pictures_and_a_killed_call_goes_on(workdir, tmp_path, monkeypatch):
    source, out = film(tmp_path / "drive.webm", (48, 64), 5), tmp_path / "out"
    words = ["predict", str(source), "--checkpoint", str(workdir), "--to", str(out)]
    words += ["--frames", "--only", "ids"]
    assert run(words) == 0
    _, frames, _ = read(source)
    net = mrm_jax.load(workdir)
    files = sorted((out / "drive_frames").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(5)]
    for file, frame in zip(files, frames, strict=True):
        found = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert (found != net.predict(frame).ids).mean() < 1e-3  # in batches of two there
    table = out / "class_shares.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    files[3].unlink()
    before = files[1].stat().st_mtime_ns
    assert run(words) == 0
    assert files[3].is_file()
    assert files[1].stat().st_mtime_ns == before
    assert len(table.read_text().splitlines()) == 7


def test_what_is_no_video_costs_no_other_and_a_video_without_overlays_is_refused(
    workdir, tmp_path, capsys
):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    source = film(tmp_path / "drive.webm", (48, 64), 2)
    words = ["predict", str(tmp_path / "broken.mp4"), str(source), "--checkpoint", str(workdir)]
    words += ["--to", str(tmp_path / "out")]
    assert run(words) == 1
    shown = capsys.readouterr()
    assert "broken.mp4 is no video that can be decoded" in shown.err
    assert "1 of 2 videos" in shown.out
    with refused("--only", "ids", way_out="--frames"):
        run([*words, "--only", "ids"])
