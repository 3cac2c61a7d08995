"""Exported weights opened again by this package, without PyTorch or transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mrm_jax.checks.stored import open_config
from mrm_jax.config import Classes, Config, Data, Decoder, Encoder, Model, detail_crop
from mrm_jax.convert import import_torch
from mrm_jax.convert.reader import read_weights
from mrm_jax.errors import UsageError
from mrm_jax.evaluation.network import TrainedNetwork, on_device
from mrm_jax.export.formats import HF_EPS, NETWORK
from mrm_jax.export.program import Segment, probabilities
from mrm_jax.models.build import build_segmentor


def segmenter(folder: Path) -> Segment:
    """What the network of an exported folder, PyTorch's or Hugging Face's, makes of pictures
    [b,H,W,3]. Raises UsageError for a folder that is none."""
    net = opened(folder)

    def segment(pictures: Any) -> tuple[np.ndarray, np.ndarray]:
        found = probabilities(net, np.asarray(pictures, np.uint8))
        return found.argmax(-1).astype(np.uint8), found

    return segment


def opened(folder: Path) -> TrainedNetwork:
    """The network of such a folder."""
    if (folder / NETWORK).is_file():
        told = json.loads((folder / NETWORK).read_text())
        config = open_config(told["config"], str(folder / NETWORK)).config
        kind, file = told["kind"], folder / "network.pth"
    elif (folder / "config.json").is_file():
        told = json.loads((folder / "config.json").read_text())
        config, kind, file = _of_transformers(told), "hf_segformer", folder / "model.safetensors"
    else:
        raise UsageError.at(
            folder, " holds no exported weights", "give a folder that export wrote."
        )
    tree = import_torch(read_weights(file).tensors, kind)
    # Whatever order the file has, what is read has this one.
    decoder = replace(config.model.decoder, concat="c1..c4")
    config = replace(config, model=replace(config.model, decoder=decoder))
    module = build_segmentor(config.model, len(config.data.classes.names), detail_crop(config))
    return TrainedNetwork(config, module, on_device(tree))


def _of_transformers(told: dict[str, Any]) -> Config:
    """The network that transformers builds from a `SegformerConfig`."""
    encoder = Encoder(
        kind="mit",
        dims=tuple(told["hidden_sizes"]),
        depths=tuple(told["depths"]),
        strides=tuple(told["strides"]),
        heads=tuple(told["num_attention_heads"]),
        sr_ratios=tuple(told["sr_ratios"]),
        mlp_ratios=tuple(told["mlp_ratios"]),
        norm_eps=HF_EPS,
        embed_norm_eps=HF_EPS,
    )
    decoder = Decoder(kind="segformer", channels=told["decoder_hidden_size"])
    names = tuple(told["id2label"][str(i)] for i in range(len(told["id2label"])))
    classes = Classes(names=names, colours=((0, 0, 0),) * len(names))
    return Config(data=Data(classes=classes), model=Model(encoder=encoder, decoder=decoder))
