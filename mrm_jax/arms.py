"""Arms of a comparison, as data: what one would write after `--config FILE`, under a name.

An arm is trained with several seeds and compared, seed by seed, with another one. Loads no jax.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mrm_jax.errors import UsageError
from mrm_jax.options import nearest

FILE = "arms.json"
"""The arms of a comparison, in its folder."""

DEFAULT = "default"
"""Recipe of an arm that is a config as its file gives it."""


class Arm(NamedTuple):
    """One way to train: recipe text and `--config.a.b=c` flags.

    `text` is what follows the colon of `--config FILE` (empty: the name). In a flag, {workdir} is
    the folder of the comparison, whose runs are in <arm's folder>/seed<n>, and {seed} the seed.
    `against`: the name of the arm whose runs its own are compared with, seed by seed; empty: none.
    """

    name: str
    text: str = ""
    flags: tuple[str, ...] = ()
    against: str = ""

    @property
    def recipe(self) -> str:
        """What follows the colon of `--config FILE`."""
        return self.text or self.name

    @property
    def folder(self) -> str:
        """The name of its folder: letters, digits, dots, commas, dashes and underscores."""
        return re.sub(r"[^\w.,=-]+", "_", self.name).strip("_")


def parse_arm(words: str) -> Arm:
    """The arm that a user wrote as "[NAME:] RECIPE [--config.a.b=c ...]". Raises UsageError."""
    name, colon, rest = words.partition(":")
    if not colon or "--" in name:
        name, rest = words.strip(), words
    try:
        text, *flags = shlex.split(rest) or [""]
    except ValueError as error:
        raise UsageError(f"--arm '{words}' cannot be read: {error}.") from error
    if text.startswith("--"):
        raise UsageError(f"--arm '{words}' starts with a flag", "name a recipe first, say dacs.")
    wrong = [flag for flag in flags if not flag.startswith(("--config.", "--noconfig."))]
    if wrong:
        raise UsageError(
            f"--arm '{words}': '{wrong[0]}' is no config flag",
            "write --config.a.b=c after the recipe.",
        )
    return Arm(name.strip(), text, tuple(flags))


def values(
    label: str, field: str, chosen: Iterable[Any], text: str, against: str = ""
) -> tuple[Arm, ...]:
    """One arm for every value of a config field: `label value`, all with the recipe `text`."""
    return tuple(
        Arm(f"{label} {value}", text, (f"--config.{field}={value}",), against) for value in chosen
    )


def sweep(arms: Iterable[Arm], words: str, *, but: str | None = None) -> list[Arm]:
    """Every arm, but the one called `but`, with every value of a field, from a user's "a.b=1,2,3"
    or "a.b=(1,2),(3,4)". Raises UsageError."""
    field, equals, text = words.partition("=")
    field = field.removeprefix("--config.")
    if not equals or not field or not text:
        raise UsageError(
            f"--sweep '{words}':", "write FIELD=VALUE,VALUE, say method.mrm.ratio=0.2,0.4."
        )
    short = field.rpartition(".")[2]
    values = re.split(r",(?![^()]*\))", text)
    swept = []
    for arm in arms:
        if arm.name == but:
            swept.append(arm)
            continue
        for value in values:
            name, flag = f"{arm.name} {short}={value}", f"--config.{field}={value}"
            swept.append(arm._replace(name=name, text=arm.recipe, flags=(*arm.flags, flag)))
    return swept


def named_arms(table: dict[str, tuple[Arm, ...]], words: str) -> list[Arm]:
    """The arms of the sets `words` (comma-separated) in a config's ARMS. Raises UsageError."""
    found: list[Arm] = []
    for name in words.split(","):
        if name not in table:
            hint = nearest(name, table)
            known = ", ".join(table) or "none"
            raise UsageError.at(
                "--arms", f": the config has no set '{name}'; there are: {known}.{hint}"
            )
        found += table[name]
    return found


def check_arms(arms: Iterable[Arm]) -> None:
    """Raises UsageError for two arms whose names give one folder, and for a name that gives
    none."""
    seen: dict[str, str] = {}
    for arm in arms:
        if not arm.folder.strip("."):
            raise UsageError(f"An arm is called '{arm.name}'; its folder needs letters or digits.")
        if arm.folder in seen:
            raise UsageError(
                f"The arms '{seen[arm.folder]}' and '{arm.name}' would share a folder",
                "name them apart: --arm 'NAME: RECIPE'.",
            )
        seen[arm.folder] = arm.name


def read_arms(workdir: Path) -> list[Arm]:
    """The arms of a comparison's folder; none where it has no arms.json."""
    try:
        found = json.loads((workdir / FILE).read_text("utf-8"))
    except OSError:
        return []
    return [Arm(**{**row, "flags": tuple(row["flags"])}) for row in found]
