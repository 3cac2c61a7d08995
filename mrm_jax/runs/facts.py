"""What a checkpoint's facts have to look like to be used, as valid JSON may be anything, and the
scores in them.

They are checked for shape and not by a digest, since scores are added after a save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

BEST_BY = "eval/student/mIoU"
"""The score that decides which checkpoint is the best one; `evaluation.pick_by` names the one
without labels that decides which is picked.
"""

_Test = Callable[[Any], bool]


def problem(facts: Any) -> str | None:
    """What is wrong with facts as JSON gave them, or None where all that is used of them has the
    right type."""
    if not isinstance(facts, dict):
        return f"is {_kind(facts)} instead of an object"
    if "config" not in facts:
        return "has no 'config'"
    for name, (test, wanted) in _FIELDS.items():
        if name in facts and not test(facts[name]):
            return f"has {_kind(facts[name])} as '{name}', which has to be {wanted}"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    plain = {int: "a number", float: "a number", type(None): "null"}
    return f"{(names | plain)[type(value)]}" + (" of another shape" if type(value) is dict else "")


def _number(value: Any) -> bool:
    """NaN is one: a class that is not there has no score."""
    return type(value) in (int, float) and abs(value) < 2**63 or value != value


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(test: _Test) -> _Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _object_of(test: _Test) -> _Test:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


def _config(value: Any) -> bool:
    """As far as scores need it; `checks.stored.open_config` says what is wrong with the rest."""
    evaluation = value.get("evaluation", {}) if isinstance(value, dict) else None
    return isinstance(evaluation, dict) and _text(evaluation.get("pick_by", ""))


def _sentinel(value: Any) -> bool:
    """{} or what `Sentinel.memory` gives, with as many shares of either kind."""
    if value == {}:
        return True
    parts = {
        "steps": _whole,
        "share": _list_of(_number),
        "top_share": _list_of(_number),
        "top_iou": _object_of(_number),
        "down": _list_of(_text),
    }
    whole = isinstance(value, dict) and value.keys() == parts.keys()
    return (
        whole
        and all(test(value[name]) for name, test in parts.items())
        and len(value["share"]) == len(value["top_share"])
        and math.isfinite(sum(value["share"] + value["top_share"]))
    )


def _weights(value: Any) -> bool:
    return isinstance(value, dict) and _list_of(_text)(value.get("missing", []))


_FIELDS: Mapping[str, tuple[_Test, str]] = {
    "config": (_config, "the config of a run"),
    "state_version": (_whole, "a whole number"),
    "mrm_jax": (_text, "a text"),
    "scores": (_object_of(lambda v: v is None or _number(v)), "numbers by name"),
    "sentinel": (_sentinel, "the sentinel's memory"),
    "weights": (_weights, "what is known of the weights"),
    "converted": (lambda value: isinstance(value, bool), "true or false"),
    "digests": (_object_of(_text), "a digest for every array"),
}


def scores_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """What decides: "best" by labels and "picked" without, those that there are."""
    pick_by = facts["config"].get("evaluation", {}).get("pick_by")
    given = facts.get("scores", {})
    found = {"best": given.get(BEST_BY), "picked": given.get(f"select/{pick_by}")}
    return {which: s for which, s in found.items() if s is not None and not math.isnan(s)}


def top_of(scores: Mapping[int, Mapping[str, float]], which: str) -> int | None:
    """The step with the highest score, the earliest of equals; None without any."""
    scored = {step: given[which] for step, given in sorted(scores.items()) if which in given}
    return max(scored, key=lambda step: scored[step]) if scored else None
