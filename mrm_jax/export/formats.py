"""The formats that a trained network leaves in: what is written, and the program that runs it.

Each `write` puts files into a folder that is there; the program is `run.py` beside them. Packages
that a format needs are imported where it is written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import mrm_jax
from mrm_jax.config import Model
from mrm_jax.convert.outgoing import Outgoing, outgoing
from mrm_jax.convert.reader import write_weights
from mrm_jax.errors import RunError, UsageError
from mrm_jax.evaluation.network import TrainedNetwork
from mrm_jax.export.program import program, program_of_one
from mrm_jax.ops.platform import portable
from mrm_jax.paths import write_bytes, write_text
from mrm_jax.registry import ENCODER_KINDS

PLATFORMS = ("cpu", "cuda", "tpu")
"""That a StableHLO file is lowered for."""
HF_EPS = 1e-5
"""Of every LayerNorm of transformers' SegFormer, whatever its config says. Source: transformers
modeling_segformer.py, nn.LayerNorm with its default."""
NETWORK = "network.json"
"""What no tensor of a PyTorch file shows."""

_HEAD = '''"""Segments a picture: python run.py PICTURE CLASSES.png"""
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
'''
_TAIL = """

if __name__ == "__main__":
    picture = Image.open(sys.argv[1]).convert("RGB").resize(({width}, {height}))
    ids, probabilities = segment(np.asarray(picture)[None])
    Image.fromarray(np.asarray(ids[0])).save(sys.argv[2])
"""
_STABLEHLO = """

def segment(pictures):  # {dtype}[b, {height}, {width}, 3], RGB, 0..255
    from jax import export

    network = export.deserialize(bytearray((HERE / "network.stablehlo").read_bytes()))
    return network.call(pictures.astype(np.{dtype}))  # ids u8, probabilities f32
"""
_ONNX = """

def segment(pictures):  # {dtype}[b, {height}, {width}, 3], RGB, 0..255
    import onnxruntime

    network = onnxruntime.InferenceSession(HERE / "network.onnx")
    found = [network.run(None, {{"pictures": p[None].astype(np.{dtype})}}) for p in pictures]
    return tuple(np.concatenate(part) for part in zip(*found))  # ids u8, probabilities f32
"""
_HUGGINGFACE = """

def segment(pictures):  # [b, H, W, 3], RGB, 0..255
    import json, torch
    from transformers import SegformerForSemanticSegmentation

    network = SegformerForSemanticSegmentation.from_pretrained(HERE).eval()
    read = json.loads((HERE / "preprocessor_config.json").read_text())
    image = (pictures / 255 - read["image_mean"]) / read["image_std"]
    image = torch.tensor(image.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        logits = network(image).logits
        logits = torch.nn.functional.interpolate(logits, image.shape[2:], mode="bilinear")
    found = logits.softmax(1).permute(0, 2, 3, 1).numpy()
    return found.argmax(-1).astype(np.uint8), found  # ids, probabilities
"""
_TORCH = """

def segment(pictures):  # [b, H, W, 3], RGB, 0..255
    # torch.load(HERE / "network.pth") is the state dict; this reads it without torch.
    from mrm_jax.export.reopen import segmenter

    return segmenter(HERE)(pictures)  # ids u8, probabilities f32
"""


@dataclass(frozen=True)
class Exported:
    """What was written: `net` is the network that the files hold, `notes` are sentences for the
    model card."""

    net: TrainedNetwork
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One way out. write(net, (H, W), dtype of the pictures, folder); `program`: run.py's function;
    `packages`: to install where it runs; `imports`: the packages without which run.py cannot run
    here; `sized`: whether H and W are fixed; `library`: the hub's name of what loads it."""

    write: Callable[[TrainedNetwork, tuple[int, int], str, Path], Exported]
    program: str
    packages: str
    imports: tuple[str, ...]
    sized: bool
    library: str

    def script(self, size: tuple[int, int], dtype: str) -> str:
        """run.py."""
        text = _HEAD + self.program + _TAIL
        return text.format(height=size[0], width=size[1], dtype=dtype)


def _stablehlo(net: TrainedNetwork, size: tuple[int, int], dtype: str, folder: Path) -> Exported:
    import jax
    from jax import export

    _needs("flatbuffers")
    (batch,) = export.symbolic_shape("b")
    pictures = jax.ShapeDtypeStruct((batch, *size, 3), np.dtype(dtype))
    found = export.export(jax.jit(program(net)), platforms=PLATFORMS)(pictures)
    write_bytes(folder / "network.stablehlo", bytes(found.serialize()))
    return Exported(net, (f"One file for {', '.join(PLATFORMS)}; any number of pictures at once.",))


def _onnx(net: TrainedNetwork, size: tuple[int, int], dtype: str, folder: Path) -> Exported:
    import jax
    from jax.extend.core import jaxpr_as_fun

    _needs("jax2onnx")
    pictures = jax.ShapeDtypeStruct((1, *size, 3), np.dtype(dtype))
    with portable():  # before jax2onnx puts operators of its own into flax and jax.numpy
        traced = jax.make_jaxpr(program_of_one(net))(pictures)
    run = jaxpr_as_fun(traced)
    with _silent():
        to_onnx = import_module("jax2onnx").to_onnx
        try:
            made: Any = to_onnx(
                lambda x: tuple(run(x)),
                inputs=[pictures],
                model_name="mrm_jax",
                input_names=["pictures"],
                output_names=["ids", "probabilities"],
            )
        except Exception as error:  # it raises what its rules for operators happen to raise
            raise RunError.at(
                "--format onnx",
                f": jax2onnx cannot write this network ({' '.join(str(error).split())[:200]})",
                "use --format stablehlo.",
            ) from error
    write_bytes(folder / "network.onnx", made.SerializeToString())
    return Exported(net, ("One picture at a time.",))


def _huggingface(net: TrainedNetwork, size: tuple[int, int], dtype: str, folder: Path) -> Exported:
    del dtype
    model = net.config.model
    encoder, decoder = model.encoder, model.decoder
    if encoder.kind != "mit" or decoder.kind != "segformer" or model.multires.enabled:
        what = "HRDA" if model.multires.enabled else f"{encoder.kind} with {decoder.kind}"
        raise UsageError(
            f"--format huggingface: transformers has SegFormer's network, not {what}",
            "use --format stablehlo, onnx or torch.",
            field="--format",
            value="huggingface",
        )
    found = _named(net, "huggingface", "hf_segformer")
    write_weights(folder / "model.safetensors", found.tensors, {"format": "pt"})
    write_text(folder / "config.json", _json(hf_config(net)))
    stats = ENCODER_KINDS[encoder.kind].input
    reading = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [level / 255 for level in stats.mean],
        "image_std": [level / 255 for level in stats.std],
        "do_reduce_labels": False,
    }
    write_text(folder / "preprocessor_config.json", _json(reading))
    theirs = replace(encoder, norm_eps=HF_EPS, embed_norm_eps=HF_EPS)
    if theirs == encoder:
        return Exported(net)
    config = replace(net.config, model=replace(model, encoder=theirs))
    note = (
        f"transformers runs all LayerNorms with epsilon {HF_EPS:g}; this network was trained with "
        f"{encoder.norm_eps:g} and {encoder.embed_norm_eps:g}, so probabilities differ slightly."
    )
    return Exported(with_config(net, config), (note,))


def hf_config(net: TrainedNetwork) -> dict[str, Any]:
    """config.json of transformers' `SegformerConfig` for a SegFormer network."""
    encoder, decoder = net.config.model.encoder, net.config.model.decoder
    names = {str(i): name for i, name in enumerate(net.classes)}
    return {
        "model_type": "segformer",
        "architectures": ["SegformerForSemanticSegmentation"],
        "num_channels": 3,
        "num_encoder_blocks": len(encoder.dims),
        "depths": list(encoder.depths),
        "sr_ratios": list(encoder.sr_ratios),
        "hidden_sizes": list(encoder.dims),
        "patch_sizes": [7, *[3] * (len(encoder.dims) - 1)],
        "strides": list(encoder.strides),
        "num_attention_heads": list(encoder.heads),
        "mlp_ratios": list(encoder.mlp_ratios),
        "hidden_act": "gelu",
        "drop_path_rate": encoder.drop_path,
        "classifier_dropout_prob": decoder.dropout,
        "layer_norm_eps": HF_EPS,
        "decoder_hidden_size": decoder.channels,
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": 255,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "torch_dtype": "float32",
    }


def _torch(net: TrainedNetwork, size: tuple[int, int], dtype: str, folder: Path) -> Exported:
    del size, dtype
    found = _named(net, "torch")
    write_weights(folder / "network.pth", found.tensors, {})
    write_text(folder / NETWORK, _json({"kind": found.kind, "config": described(net)}))
    return Exported(net, (f"Names of the layout {found.kind}, for a strict load.",))


def _named(net: TrainedNetwork, form: str, kind: str | None = None) -> Outgoing:
    """The state dict of `net`; UsageError where PyTorch's layouts have no names for its tensors."""
    try:
        return outgoing(net.variables, net.config.model, kind)
    except UsageError as error:
        raise UsageError(
            f"--format {form}: no layout of PyTorch has names for this network ({error})",
            "use --format stablehlo or onnx.",
            field="--format",
            value=form,
        ) from error


def described(net: TrainedNetwork) -> dict[str, Any]:
    """The options that a reader needs, as JSON: the network, its classes, how it looks at pictures;
    no paths of the machine that it was trained on."""
    config = net.config
    model: Model = replace(config.model, encoder=replace(config.model.encoder, weights=None))
    data = {"classes": asdict(config.data.classes), "crop": config.data.crop}
    found = {"model": asdict(model), "data": data, "evaluation": asdict(config.evaluation)}
    return {"mrm_jax": mrm_jax.__version__, **found}


def with_config(net: TrainedNetwork, config: Any) -> TrainedNetwork:
    """`net` with the module of another config."""
    from mrm_jax.export.program import plain

    return plain(replace(net, config=config))


FORMATS: Mapping[str, Format] = {
    "stablehlo": Format(
        _stablehlo, _STABLEHLO, "jax flatbuffers pillow", ("jax", "flatbuffers"), True, "jax"
    ),
    "onnx": Format(_onnx, _ONNX, "onnxruntime pillow", ("onnxruntime",), True, "onnx"),
    "huggingface": Format(
        _huggingface,
        _HUGGINGFACE,
        "torch transformers pillow",
        ("torch", "transformers"),
        False,
        "transformers",
    ),
    "torch": Format(_torch, _TORCH, "mrm-jax", (), False, "pytorch"),
}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _needs(*packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise UsageError.at(
                "--format",
                f": the package {package} is not installed",
                "pip install 'mrm-jax[export]'",
            )


@contextmanager
def _silent() -> Iterator[None]:
    """jax2onnx prints about itself."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
