"""Whether two paths hold the same pictures: what lets a run go on after its data were moved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import cast

from mrm_jax.config import Config, Domain, evaluation_domain, has_evaluation, source_domain
from mrm_jax.data import sources
from mrm_jax.data.prepared import manifest
from mrm_jax.data.prepared.reading import reads_prepared
from mrm_jax.data.rare_class import source_field
from mrm_jax.errors import UsageError
from mrm_jax.paths import is_remote, located, sizes_below

SIZED = 1000
"""Files whose size is looked at, spread evenly: a network drive takes a millisecond for each."""


def identities(config: Config) -> dict[str, str]:
    """A hash of what "source", "target" and "evaluation" hold; without sets that are drawn or do
    not open.

    Of a prepared set its split's files as the manifest has them; of a folder the names of all
    pictures and labels, and the sizes of `SIZED` of them. Not their times of change, which a copy
    loses.
    """
    domains = {
        "source": (source_domain(config), True, source_field(config)),
        "target": (config.data.target, False, "config.data.target"),
    }
    if has_evaluation(config):
        domains["evaluation"] = (evaluation_domain(config), True, "config.data.evaluation")
    found = {}
    for name, (domain, labelled, field) in domains.items():
        if domain.kind == "folder" and domain.path:
            with suppress(UsageError, OSError):  # opening it will say so, where it is needed
                found[name] = _identity(config, domain, labelled, field)
    return found


def _identity(config: Config, domain: Domain, labelled: bool, field: str) -> str:
    root = located(domain.path or "")
    if reads_prepared(domain):
        split = manifest.read_manifest(root, field=field).split(domain.split, field=field)
        return _hash([asdict(shard) for shard in split.shards])
    pictures = (
        sources.FolderLabelled(domain, len(config.data.classes.names), field)
        if labelled
        else sources.Folder(domain, field)
    )
    files = [*cast("tuple[Path, ...]", pictures.files), *getattr(pictures, "label_files", ())]
    names = [file.relative_to(root).as_posix() for file in files]
    return _hash([sorted(names), _sizes(root, files, names)])


def _sizes(root: Path, files: Sequence[Path], names: Sequence[str]) -> list[int]:
    chosen = sorted({place * len(files) // SIZED for place in range(SIZED)}) if files else []
    if is_remote(root):
        known = dict(sizes_below(root))
        return [known[names[at]] for at in chosen]
    return [files[at].stat().st_size for at in chosen]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
