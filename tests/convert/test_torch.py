"""With torch at hand: its files are opened without running them, and Hugging Face's SegFormer gives
our logits, both ways."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch_states as states

torch: Any = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mrm_jax import config, recipes  # noqa: E402 - after the skip
from mrm_jax.convert import export_torch, import_torch  # noqa: E402
from mrm_jax.convert.network import load_network  # noqa: E402
from mrm_jax.convert.reader import read_weights, write_weights  # noqa: E402
from mrm_jax.errors import UsageError  # noqa: E402
from mrm_jax.models.build import build_segmentor  # noqa: E402


def tensors(state: states.State) -> dict[str, Any]:
    return {key: torch.from_numpy(np.array(value)) for key, value in state.items()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_and_their_wrappers_are_read(tmp_path: Path, zipped: bool) -> None:
    state = states.segmentor()
    meta = {"iter": np.int64(40_000), "loss": np.float64(0.5), "CLASSES": ("road", "sky")}
    file = {"state_dict": tensors(states.prefixed("module.", state)), "meta": meta}
    path = tmp_path / "x.pth"
    optimiser = {"state": {0: torch.zeros(2)}, "param_groups": [{"lr": 6e-5}]}
    torch.save({**file, "optimizer": optimiser}, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    assert found.meta["CLASSES"] == ["road", "sky"]
    assert (found.meta["iter"], found.meta["loss"]) == (40_000, 0.5)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = tensors(states.mit())
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({k: v.to(dtype) for k, v in state.items()}, tmp_path / "x.pth")
        found = read_weights(tmp_path / "x.pth").tensors
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value.to(dtype).float().numpy())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "x.pth"
    torch.save(tensors(states.mit()), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"x\.pth cannot be read as a PyTorch file"):
        read_weights(path)


def test_a_flipped_bit_is_found_by_the_check_sum_that_torch_does_not_look_at(tmp_path) -> None:
    path = tmp_path / "x.pth"
    torch.save(tensors(states.mit()), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(UsageError, match=r"x\.pth cannot be read .* fails its check sum"):
        read_weights(path)


def nest(depth: int, width: int) -> Any:
    found: Any = [1]
    for _ in range(depth):
        found = [found] * width
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, no tensors by name"),
        (3, "holds a int, no tensors by name"),
        ({"model": {"a": torch.ones(1)}, "meta": nest(150, 1)}, "nested deeper than 100"),
        ({"model": {"a": torch.ones(1)}, "meta": nest(12, 10)}, "or more than 1000000"),
        ({"a": torch.ones(1).expand(2**40)}, "its tensors are more than"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "a holds complex64; weights are floating"),
        ({"a\nb": torch.ones(1)}, r"a tensor is called 'a\\nb'; rename it"),
        ({1: torch.ones(1), "1": torch.zeros(1)}, "it holds '1' twice"),
    ],
    ids=["list", "number", "deep", "wide", "repeated", "complex", "line break", "name twice"],
)
def test_what_no_network_is_saved_as_is_refused_in_one_line(tmp_path, content, message) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=message) as caught:
        read_weights(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert str(caught.value).isprintable()


def test_notes_of_another_type_and_float8_are_read(tmp_path) -> None:
    file = {"state_dict": {"a": torch.ones(2).to(torch.float8_e5m2)}, "meta": [1]}
    torch.save(file, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    np.testing.assert_array_equal(found.tensors["a"], np.ones(2, np.float32))
    assert found.meta == {"meta": [1]}


class Trap:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path, monkeypatch, zipped) -> None:
    monkeypatch.chdir(tmp_path)
    file = {"state_dict": tensors(states.mit()), "meta": Trap()}
    torch.save(file, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match=r"refused: to open it, code would have to run \(.*open"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "x.pth", weights_only=False)["meta"].close()
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_bare_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Trap()}))
    with pytest.raises(UsageError, match=r"refused: .*\(a pickle that torch\.save did not write\)"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "sprung").exists()


def test_what_torch_opens_is_what_was_written(tmp_path: Path) -> None:
    tree = import_torch(states.segmentor(), "segmentor")
    state = export_torch(tree, "segmentor", complete=True)
    write_weights(tmp_path / "x.pth", state, {})
    found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


def test_the_safetensors_package_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    package: Any = pytest.importorskip("safetensors.torch", reason="comes with transformers")
    state = states.segmentor()
    write_weights(tmp_path / "ours.safetensors", state, {"note": "x"})
    theirs = package.load_file(tmp_path / "ours.safetensors")
    package.save_file(
        {**theirs, "half": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "theirs.safetensors"
    )
    found = read_weights(tmp_path / "theirs.safetensors").tensors
    for name, value in state.items():
        np.testing.assert_array_equal(theirs[name].numpy(), value)
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_array_equal(found["half"], np.ones(3, np.float32))


SIZES = ("mit_b0", "mit_b2")
ODD = (65, 97)


def published(name: str) -> Any:
    """Hugging Face's SegFormer of a published size, with random weights and statistics."""
    transformers: Any = pytest.importorskip("transformers", reason="compares with transformers")
    encoder = recipes.ENCODERS[name]
    settings = transformers.SegformerConfig(
        hidden_sizes=list(encoder.dims),
        depths=list(encoder.depths),
        decoder_hidden_size=256 if name == "mit_b0" else 768,
        num_labels=19,
    )
    torch.manual_seed(0)
    network = transformers.SegformerForSemanticSegmentation(settings).eval()
    norm = network.decode_head.batch_norm
    with torch.no_grad():
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        for name, parameter in network.named_parameters():  # initial biases of 0 prove little
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
    return network


def our_logits(tree: Any, model: config.Model, image: np.ndarray) -> np.ndarray:
    network = build_segmentor(model, 19)
    run = jax.jit(
        lambda v, x: network.apply(v, x, mode="eval").logits["main"],  # type: ignore[union-attr]
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(run(tree, image.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    # Both are float32 and sum in another order over up to 60 layers; the parity tests find 1e-6 to
    # 1e-5 of the largest logit for one network against its own float64.
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", SIZES)
def test_logits_of_hugging_face_and_ours_agree_in_both_directions(tmp_path, name) -> None:
    theirs = published(name)
    image = np.random.default_rng(0).standard_normal((1, 3, *ODD), dtype=np.float32)
    with torch.no_grad():
        wanted = theirs(pixel_values=torch.from_numpy(image)).logits.numpy()

    # In: its own state dict (transformers 5 names), and what it saves (hub names).
    torch.save(theirs.state_dict(), tmp_path / "five.pth")
    theirs.save_pretrained(tmp_path / "hub")
    network = load_network(tmp_path / "five.pth")
    hub = load_network(tmp_path / "hub" / "model.safetensors")
    assert (network.kind, hub.kind) == ("hf_segformer", "hf_segformer")
    jax.tree.map(np.testing.assert_array_equal, network.tree, hub.tree)
    model = network.model
    assert model.encoder.heads == recipes.ENCODERS[name].heads
    agree(our_logits(network.tree, model, image), wanted)

    # Out: a strict load of what we write, into a network of other random weights.
    state = export_torch(network.tree, "hf_segformer", complete=True)
    folder = tmp_path / "ours"
    folder.mkdir()
    write_weights(folder / "model.safetensors", state, {"format": "pt"})
    settings = json.loads((tmp_path / "hub" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings))
    loaded, report = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        again = loaded.eval()(pixel_values=torch.from_numpy(image)).logits.numpy()
    np.testing.assert_array_equal(again, wanted)


def test_torchvisions_resnet50_gives_our_features(tmp_path: Path) -> None:
    try:
        import torchvision  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        pytest.skip(f"needs a torchvision that fits this torch: {error}")
    from mrm_jax.models.build import build_encoder

    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    network = load_network(tmp_path / "resnet50.pth")
    assert network.kind == "resnet_torchvision"
    assert network.model.encoder.depths == (3, 4, 6, 3)
    # torchvision's own strides; the segmentation papers trade the last two for dilation.
    plain = config.Encoder(
        kind="resnet", dims=(256, 512, 1024, 2048), depths=(3, 4, 6, 3), strides=(4, 2, 2, 2),
        dilations=(1, 1, 1, 1), stem="7x7",
    )  # fmt: skip
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)
    encoder: Any = build_encoder(config.Model(encoder=plain))
    variables = {name: below["encoder"] for name, below in network.tree.items()}
    maps = jax.jit(lambda v, x: encoder.apply(v, x, mode="eval"))(
        variables, image.transpose(0, 2, 3, 1)
    )
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(torch.from_numpy(image)))))
    for stage, ours in zip(("layer1", "layer2", "layer3", "layer4"), maps, strict=True):
        x = getattr(theirs, stage)(x)
        agree(np.asarray(ours).transpose(0, 3, 1, 2), x.detach().numpy())
