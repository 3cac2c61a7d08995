"""One prepared picture as bytes: a `tf.train.Example` that tensorflow-datasets reads too, written
and read without tensorflow.

Its features: `name` the stem; `image` the picture, RGB, as PNG or JPEG; `label` train ids as a grey
PNG, all 255 where there are none; `height`, `width` of the picture before it was resized, px.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mrm_jax.data.prepared import jpeg, png
from mrm_jax.data.transforms import Picture

CODECS = ("png", "jpeg95")
"""png keeps every pixel; jpeg95 is a JPEG of quality 95 with colours at half resolution, and with
restart intervals, so that `jpeg` decodes parts of it."""

# Of the filters and strategies of PNG, run lengths over differences to the row above decode
# fastest at a size that is not far from the smallest: docs/data.md has the figures. `png` reads no
# other filter.
_PNG = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
# Labels are areas of one value: differences to the neighbours gain nothing.
_LABEL = (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)


class PictureRecord(NamedTuple):
    """`image` u8[H,W,3], `label` u8[H,W]; `size` (height, width) px of the picture as it came."""

    name: str
    image: np.ndarray
    label: np.ndarray
    size: tuple[int, int]


def encode_record(record: PictureRecord, codec: str) -> bytes:
    """The record as bytes, equal for equal input; `codec` is one of `CODECS`."""
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    feature["name"].bytes_list.value.append(record.name.encode("utf-8", "surrogateescape"))
    feature["image"].bytes_list.value.append(encode_image(record.image, codec))
    feature["label"].bytes_list.value.append(encode_label(record.label))
    feature["height"].int64_list.value.append(record.size[0])
    feature["width"].int64_list.value.append(record.size[1])
    return example.SerializeToString(deterministic=True)


def encode_image(image: np.ndarray, codec: str) -> bytes:
    """The picture RGB u8[H,W,3] as a PNG or JPEG file."""
    stored = np.ascontiguousarray(image[..., ::-1])
    if codec == "png":
        return _encoded(".png", stored, _PNG)
    restart = (cv2.IMWRITE_JPEG_RST_INTERVAL, jpeg.interval(image.shape[1]))
    return _encoded(".jpg", stored, (*_JPEG, *restart))


def encode_label(label: np.ndarray) -> bytes:
    """The train ids u8[H,W] as a PNG file."""
    return _encoded(".png", label, _LABEL)


def _encoded(suffix: str, array: np.ndarray, how: tuple[int, ...]) -> bytes:
    return cv2.imencode(suffix, array, how)[1].tobytes()


class StoredPicture:
    """A record opened from its bytes; pictures are decoded when asked for."""

    def __init__(self, content: bytes) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        kind: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
        self._feature: Any = kind.FromString(content).features.feature

    @property
    def name(self) -> str:
        """The stem."""
        return self._feature["name"].bytes_list.value[0].decode("utf-8", "surrogateescape")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) px of the picture before it was resized."""
        return tuple(self._feature[k].int64_list.value[0] for k in ("height", "width"))

    def image(self) -> np.ndarray:
        """RGB u8[H,W,3]."""
        return np.asarray(self.picture())

    def picture(self) -> Picture:
        """`image`, with parts of it decoded when they are asked for where the codec allows that."""
        with _damaged("image"):
            content = self._feature["image"].bytes_list.value[0]
            return jpeg.parts(content) or decode_image(content)

    def label(self) -> np.ndarray:
        """Train ids of the set's class table, u8[H,W]; 255 counts nowhere."""
        with _damaged("label"):
            content = self._feature["label"].bytes_list.value[0]
            return decode_image(content, cv2.IMREAD_GRAYSCALE)


@contextmanager
def _damaged(name: str) -> Iterator[None]:
    """Says which part of a record cannot be read."""
    try:
        yield
    except (ValueError, IndexError, cv2.error) as error:
        raise ValueError(f"its {name} is damaged: {error}") from error


def decode_image(content: bytes, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """The pixels of a PNG or JPEG file, by OpenCV's `flags`. Raises ValueError where there are
    none.
    """
    array = png.decode_png(content) if content.startswith(png.SIGNATURE) else None
    if array is None:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if array is None:
        raise ValueError("it cannot be decoded")
    return array


METADATA = ("features.json", "dataset_info.json")
"""What `write_metadata` writes."""


def write_metadata(
    to: Path,
    name: str,
    lengths: Mapping[str, list[tuple[int, int]]],
    codec: str,
    **info: str | None,
) -> None:
    """features.json and dataset_info.json in `to`, by which tensorflow-datasets reads the shards
    `<name>-<split>.array_record-<i>-of-<n>` there.

    lengths: of every split, (records, bytes) of its shards. info: goes into dataset_info.json.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    for file in ("features.json", "dataset_info.json"):
        if (to / file).is_symlink():  # which the writer below would follow
            (to / file).unlink()
    format_ = "png" if codec == "png" else "jpeg"
    features = tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=format_),
            "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "height": np.int64,
            "width": np.int64,
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(to),
        dataset_name=name,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count for count, _ in each],
            num_bytes=sum(size for _, size in each),
            filename_template=template.replace(split=split),
        )
        for split, each in lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=to,
        features=features,
        split_infos=infos,
        filename_template=template,
        check_data=False,
        **info,
    )
