"""Networks under whatever keys and prefixes: one is found, of several all are listed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch_states as states
from refusals import refused

from mrm_jax.convert import SeveralError, detect, import_torch, leaves, trace
from mrm_jax.convert.containers import unwrapped
from mrm_jax.convert.network import load_network
from mrm_jax.errors import UsageError

MATRIX = np.ones((2, 2), np.float32)
OPTIMIZER = {"state": {"0": {"exp_avg": MATRIX}}, "param_groups": [{"lr": 0.1}]}


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    mine, theirs = leaves(found), leaves(wanted)
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize(
    ("nest", "meta"),
    [
        ({"net": states.mit()}, {}),
        ({"ema": states.mit(), "epoch": 3, "loss": np.float32(0.5)}, {"epoch": 3, "loss": 0.5}),
        ({"run": {"weights": states.mit(), "step": 7}, "optimizer": OPTIMIZER}, None),
        ({"model_state": states.mit(), "optimizer_state": OPTIMIZER}, None),
        ({"backbone": states.mit(), "callbacks": {"best": {"score": np.ones(1)}}}, None),
        ({"state_dict": states.prefixed("module.", states.mit()), "ema": states.mit()}, None),
        ({"state_dict": {"net": states.mit()}, "meta": {"epoch": 3}}, {"epoch": 3}),
    ],
    ids=lambda value: "+".join(value) if value else None,
)
def test_the_only_network_of_a_file_keeps_its_own_names_under_any_key(nest, meta) -> None:
    tensors, beside = unwrapped(nest)
    assert tensors.keys() == states.mit().keys()
    assert meta is None or meta.items() <= beside.items()


def test_parts_of_one_network_under_keys_of_their_own_are_one_network() -> None:
    tensors, _ = unwrapped({"backbone": states.mit(), "decode_head": states.daformer_head()})
    assert detect(tensors) == "segmentor"


def test_what_lies_beside_a_whole_network_is_dropped_by_name_and_another_one_is_not() -> None:
    """`model.` is where DAFormer's student lies, and where Lightning puts a network."""
    beside = {"criterion.weight": MATRIX, "teacher_loss.bias": MATRIX[0]}
    for prefix in ("model.", "net.", "my.net."):
        state = states.prefixed(prefix, states.segmentor()) | beside
        assert detect(state) == "segmentor"
        told = trace(state, "segmentor")
        assert not told.problems
        assert all(told.dropped[n].startswith(f"not under {prefix[:-1]}") for n in beside)
    for other in ("net.", "teacher."):
        both = state | states.prefixed("model.", states.segmentor())
        both |= states.prefixed(other, states.segmentor())
        with pytest.raises(SeveralError) as caught:
            detect(both)
        assert {"model", other[:-1]} <= {*caught.value.places}


@pytest.mark.parametrize("prefix", ["model.", "ema.", "net.encoder.", "student_net.backbone."])
def test_an_encoder_under_one_prefix_is_found_beside_other_tensors(prefix: str) -> None:
    state = states.prefixed(prefix, states.mit()) | {"criterion.weight": MATRIX}
    assert detect(state) == "mit"
    assert _same(import_torch(state, "mit"), import_torch(states.mit(), "mit"))
    assert trace(state, "mit").dropped["criterion.weight"].startswith("not under ")


def test_a_whole_segmentor_is_found_before_the_encoder_in_it() -> None:
    state = states.prefixed("lightning.", states.segmentor())
    assert detect(state) == "segmentor"
    assert _same(import_torch(state, "segmentor"), import_torch(states.segmentor(), "segmentor"))


def test_of_several_networks_one_has_to_be_named(tmp_path) -> None:
    other = {name: value + 1 for name, value in states.mit().items()}
    tensors, _ = unwrapped({"student": states.mit(), "teacher": other})
    with pytest.raises(SeveralError) as caught:
        detect(tensors)
    assert caught.value.places == ["student", "teacher"]
    assert _same(import_torch(tensors, "mit", copy="teacher"), import_torch(other, "mit"))
    with pytest.raises(ValueError, match="copies there: student, teacher"):
        import_torch(tensors, "mit", copy="third")
    np.savez(tmp_path / "both.npz", **tensors)
    with pytest.raises(UsageError, match="student and teacher.*convert --copy student"):
        load_network(tmp_path / "both.npz")
    for kind in ("mit", None):  # as the line says, without a kind
        found = load_network(tmp_path / "both.npz", kind, copy="teacher")
        assert (found.kind, found.copy) == ("mit", "teacher")
        assert found.dropped.keys() >= {f"student.{name}" for name in other}
    with refused(tmp_path / "both.npz"):
        load_network(tmp_path / "both.npz", copy="third")


def test_of_unknown_names_the_beginnings_are_told_with_their_counts() -> None:
    state = {f"head.{k}": MATRIX for k in range(3)} | {"vit.a": MATRIX}
    with pytest.raises(ValueError, match=r"begin with head \(3\), vit \(1\)"):
        detect(state)


def test_the_mark_of_a_kind_in_a_strange_network_makes_no_kind_of_it() -> None:
    with pytest.raises(ValueError, match="no kind has these names"):
        detect({"blocks.0.conv1.weight": np.ones((4, 3, 3, 3)), "blocks.1.conv1.weight": MATRIX})
