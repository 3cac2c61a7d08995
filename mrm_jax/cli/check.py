"""`check`: what is wrong with a data set, and how to fix it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax.cli.prepare import add_limit, data_set, names
from mrm_jax.cli.progress import progress_bar
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import local, shown, what_is_wrong

if TYPE_CHECKING:
    from mrm_jax.config import Classes
    from mrm_jax.data.checked import Checked, Finding
    from mrm_jax.data.datasets import DataSet
    from mrm_jax.data.locating import Located


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("data_set", metavar="DATASET", help=f"one of {', '.join(names())}")
    parser.add_argument(
        "--from", dest="root", type=local, required=True, help="the download, or a prepared set"
    )
    parser.add_argument(
        "--to", type=local, help="write the report there, with pictures: check.html"
    )
    add_limit(parser)
    parser.add_argument("--fast", action="store_true", help="read 100 pictures of each split only")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Exit code: 1 where a finding is an error. Raises UsageError or RunError."""
    from mrm_jax.data import datasets, locating
    from mrm_jax.data.prepared import manifest
    from mrm_jax.report.check import write_check

    root = arguments.root
    chosen = datasets.limited(data_set(arguments.data_set, config), arguments.max_megapixels)
    to: Path | None = arguments.to
    progress = functools.partial(progress_bar, "pictures", lines=True)
    if manifest.is_prepared(root):
        from mrm_jax.data.prepared.check import check_prepared

        made, found = check_prepared(root, fast=arguments.fast, progress=progress)
        if made.name != arguments.data_set:
            raise UsageError(
                f"--from {root} is a prepared set of {made.name}:",
                f"check {made.name}.",
                field="--from",
                value=root,
            )
        title, classes = f"{made.title}, prepared", made.classes
        facts = [f"{root}: stored as {made.codec}; licence: {made.licence}"]
    else:
        from mrm_jax.data.check import check_download

        found = check_download(chosen, root, fast=arguments.fast, progress=progress)
        title, classes = chosen.title, chosen.classes
        located = locating.locate(chosen, root)
        facts = [f"{root}; licence: {chosen.licence}", *_room(chosen, located, root)]
        facts += [f"{name}: {line}" for name, each in located.items() for line in each.left_out()]
    written = []
    try:
        if to is not None:
            written.append(f"pictures: {write_check(to, title, facts, classes, found)}")
    except OSError as error:
        raise RunError.at(
            "--to", f" cannot be written: {what_is_wrong(error)}.", value=to
        ) from error
    bad = any(finding.severity == "error" for checked in found for finding in checked.findings)
    if arguments.json:
        print(json.dumps(check_document(title, facts, classes, found)))
    else:
        print("\n".join(map(shown, [*check_lines(title, facts, classes, found), *written])))
    return 1 if bad else 0


def _room(chosen: DataSet, found: dict[str, Located], root: Path) -> list[str]:
    """What preparing would take of the disk, estimated from a few pictures of each split."""
    from mrm_jax.data.prepared import prepare
    from mrm_jax.data.prepared.room import said

    parts = []
    for codec in ("png", "jpeg95"):
        sizes = prepare.estimated_bytes(chosen, found, prepare.Options(codec=codec))
        parts.append(f"{said(sum(sizes.values()))} as {codec}")
    free = said(shutil.disk_usage(root if root.is_dir() else root.parent).free)
    return [f"prepared it would take about {' or '.join(parts)} (estimated); {free} free"]


def check_lines(title: str, facts: list[str], classes: Classes, found: list[Checked]) -> list[str]:
    """The report for people."""
    text = [title, *(f"  {fact}" for fact in facts)]
    for checked in found:
        of = f" of {checked.expected}" if checked.expected else ""
        labelled = f", {checked.ignored:.1%} ignored" if checked.counted else ", no labels"
        sizes = ", ".join(f"{h} x {w}" for (h, w), _ in checked.sizes.most_common(3))
        text.append(
            f"{checked.split}: {checked.pictures}{of} pictures, {checked.read} read, {sizes} px"
            f"{labelled}"
        )
        total = max(int(checked.pixels.sum()), 1)
        if checked.counted:
            row = [
                f"{name} {100 * n / total:.2f} % in {held}"
                for name, n, held in zip(
                    classes.names, checked.pixels, checked.holding, strict=True
                )
                if n
            ]
            text.append(f"  {'; '.join(row)}")
        findings = sorted(checked.findings, key=lambda f: f.severity)
        text += [f"  {finding_line(found)}" for found in findings]
    if not any(checked.findings for checked in found):
        text.append("nothing was found")
    return text


def finding_line(found: Finding) -> str:
    """A finding for people."""
    example = f", such as {found.example}" if found.example else ""
    said = f"{found.count} {found.what}{example}".rstrip(".")
    return f"{found.severity}: {said}. Fix: {found.fix.rstrip('.')}."


def check_document(
    title: str, facts: list[str], classes: Classes, found: list[Checked]
) -> dict[str, Any]:
    """The report as JSON."""
    splits = {}
    for checked in found:
        splits[checked.split] = {
            "pictures": checked.pictures,
            "read": checked.read,
            "expected": checked.expected,
            "labelled": checked.labelled,
            "ignored": checked.ignored,
            "pixels": dict(zip(classes.names, checked.pixels.tolist(), strict=True)),
            "pictures_with": dict(zip(classes.names, checked.holding.tolist(), strict=True)),
            "sizes": {f"{h}x{w}": n for (h, w), n in checked.sizes.items()},
            "findings": [dataclasses.asdict(f) for f in checked.findings],
        }
    return {"title": title, "facts": facts, "splits": splits}
