"""Videos in and out, through PyAV: frames as pictures, and pictures as what a browser plays.

H.264 in MP4 halves the resolution of colours, which takes an even number of rows and columns; a
video of another size becomes VP9 in WebM, which takes any. Times of frames are kept as they are, so
that rate and length are those of the video that was read. Sound is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.data.files import UnreadableError
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.pictures import video_suffix

_CRF = "18"
"""Constant quality of the encoder: colours of classes stay recognisable next to each other."""


@dataclass
class Video:
    """An opened video: `size` (height, width) px upright, frames a second `rate`, and how many
    `frames` it says it has, 0 where it does not. `times` of the frames read so far, in `unit` s."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    unit: Fraction
    frames: int
    times: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    _decoded: Iterator[np.ndarray] = field(default_factory=lambda: iter(()))

    def pictures(self) -> Iterator[np.ndarray]:
        """Frames RGB u8[H,W,3], upright, in order. Raises UnreadableError where one cannot be
        decoded."""
        return self._decoded


@contextlib.contextmanager
def opened_video(path: Path) -> Iterator[Video]:
    """A video for reading. Raises UsageError where PyAV is missing, UnreadableError where `path` is
    no video."""
    av = _av()
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(str(path)))
            if not container.streams.video:
                raise UnreadableError.at(path, " holds no pictures", "give a video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = container.decode(stream)
            first = next(frames, None)
        except (av.FFmpegError, OSError) as error:
            raise _unreadable(path, error) from error
        if first is None:
            raise UnreadableError.at(path, " holds no frame", "give a whole video.")
        picture = _upright(first)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        unit = Fraction(first.time_base or 1 / rate)
        video = Video(path, picture.shape[:2], rate, unit, stream.frames)

        def decoded() -> Iterator[np.ndarray]:
            frame: Any = first
            try:
                while frame is not None:
                    _note(video, frame)
                    yield _upright(frame)
                    frame = next(frames, None)
            except av.FFmpegError as error:
                raise _unreadable(path, error) from error

        video._decoded = decoded()
        yield video


def _note(video: Video, frame: Any) -> None:
    step = max(round(1 / video.rate / video.unit), 1)
    after = video.times[-1] + video.durations[-1] if video.times else 0
    time = frame.pts if frame.pts is not None else after
    video.times.append(max(time, video.times[-1] + 1) if video.times else time)
    video.durations.append(frame.duration or step)


def _upright(frame: Any) -> np.ndarray:
    """RGB u8[H,W,3], turned as the video says that it is to be looked at."""
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, round(getattr(frame, "rotation", 0) / 90)))


def write(path: Path, video: Video, pictures: Iterator[np.ndarray]) -> int:
    """Writes a picture u8[H,W,3] for every frame of `video` as it is read, at the times of its
    frames; returns how many. `path` ends as `video_suffix` says."""
    av = _av()
    height, width = video.size
    even = video_suffix(video.size) == ".mp4"
    options = {"crf": _CRF, "preset": "fast"} if even else {"crf": _CRF, "b": "0", "cpu-used": "4"}
    count = 0
    with av.open(str(path), "w", format="mp4" if even else "webm") as container:
        stream: Any = container.add_stream("libx264" if even else "libvpx-vp9", rate=video.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = options
        stream.codec_context.time_base = video.unit
        start = None
        for count, picture in enumerate(pictures, 1):
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24")
            start = video.times[0] if start is None else start
            frame.pts, frame.time_base = video.times[count - 1] - start, video.unit
            frame.duration = video.durations[count - 1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return count


def _unreadable(path: Path, error: Exception) -> UnreadableError:
    said = str(error).split(":")[0].strip() or type(error).__name__
    return UnreadableError.at(path, f" is no video that can be decoded ({said})", "fetch it again.")


def _av() -> Any:
    try:
        import av
        import av.logging
    except ImportError as error:
        raise UsageError(
            "Videos are read by PyAV, which is not installed", "pip install av.", field="av"
        ) from error
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said once, in one line
    return av
