"""`predict`: segments pictures of any kind and size, without labels."""

from __future__ import annotations

import argparse
import csv
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax.cli.evaluate import (
    NETWORKS,
    add_checkpoint_arguments,
    chosen_networks,
)
from mrm_jax.cli.prepare import add_limit
from mrm_jax.cli.progress import progress_bar
from mrm_jax.config import Config, detail_crop
from mrm_jax.errors import RunError, UsageError
from mrm_jax.paths import below, located, replaced, shown, what_is_wrong

if TYPE_CHECKING:
    import numpy as np

    from mrm_jax.evaluation.pictures import NamedPicture

TABLE = "class_shares.csv"
WARNINGS_SHOWN = 5
_ITS_OWN = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR}
"""Errors of writing that say something of one name; a full disk says something of all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="pictures, folders (searched below), or patterns"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--to", type=located, required=True, metavar="DIR", help="folder of results"
    )
    parser.add_argument("--network", choices=NETWORKS, default="student", help="default: student")
    parser.add_argument(
        "--resize",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="box, px, that pictures are fitted into before the network (default: as in training)",
    )
    add_limit(parser)


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Segments all pictures; 1 where some could not be read or written (they are named), else 0.

    Of every picture: NAME.png (train ids, 8 bits, at its own size), NAME_colour.png,
    NAME_overlay.png, and a row of class_shares.csv. Raises UsageError, or RunError for a folder
    that cannot be written.
    """
    if config is not None:
        raise UsageError("predict takes its config from the checkpoint", "leave --config out.")
    if arguments.resize is not None and min(arguments.resize) < 1:
        raise UsageError(f"--resize {arguments.resize}: both sides have to be positive.")

    from mrm_jax.evaluation.pictures import collect_pictures, name_outputs

    pictures = collect_pictures(arguments.paths, arguments.to)
    jobs = name_outputs(pictures, arguments.to)

    from mrm_jax.runs.checkpoint import load_run

    loaded = load_run(arguments.workdir or arguments.checkpoint, arguments.which)
    variables = chosen_networks(loaded, arguments.network)[arguments.network]
    return _predict_all(jobs, loaded.config, variables, arguments)


def _predict_all(
    jobs: Sequence[NamedPicture], config: Config, variables: Any, arguments: argparse.Namespace
) -> int:
    import jax

    from mrm_jax.data.files import MEGAPIXELS, UnreadableError, read_image
    from mrm_jax.evaluation.pictures import input_box
    from mrm_jax.models.build import build_segmentor
    from mrm_jax.report.table import cells

    to: Path = arguments.to
    megapixels = arguments.max_megapixels or MEGAPIXELS
    model = build_segmentor(config.model, len(config.data.classes.names), detail_crop(config))
    variables = jax.device_put(variables)
    box = tuple(arguments.resize) if arguments.resize else input_box(config)
    failed: dict[str, list[str]] = {"read": [], "written": []}
    warned = 0
    try:
        to.mkdir(parents=True, exist_ok=True)
        with replaced(to / TABLE) as new:  # rows go there as they come, under the right name
            table = new.open("w", encoding="utf-8")
    except OSError as error:
        raise RunError.at(
            "--to", f" cannot be written: {what_is_wrong(error)}.", value=to
        ) from error
    with table, progress_bar("pictures", len(jobs)) as advance:
        rows = csv.writer(table)
        rows.writerow(cells(["name", "picture", "height", "width", *config.data.classes.names]))
        for done, job in enumerate(jobs, 1):
            try:
                image = read_image(job.path, upright=True, megapixels=megapixels)
                ids, warning = _segment(config, model, variables, image, box)
                _write(to, job.name, image, ids, config)
            except UnreadableError as error:
                failed["read"].append(shown(job.path))
                print(f"unreadable: {shown(error)}", file=sys.stderr)
            except RunError as error:
                if not (isinstance(cause := error.__cause__, OSError) and cause.errno in _ITS_OWN):
                    raise
                failed["written"].append(shown(job.path))
                print(f"not written: {shown(error)}", file=sys.stderr)
            else:
                rows.writerow(cells([job.name, job.path, *ids.shape, *_shares(ids, config)]))
                warned += warning is not None
                if warning is not None and warned <= WARNINGS_SHOWN:
                    print(f"warning: {shown(job.path)} {warning}.", file=sys.stderr)
            advance(done)
    if warned > WARNINGS_SHOWN:
        print(
            f"warning: {warned} pictures in all are far from the training scale.", file=sys.stderr
        )
    count = sum(map(len, failed.values()))
    print(f"{len(jobs) - count} of {len(jobs)} pictures segmented into {to}")
    for what, paths in failed.items():
        if paths:
            print(f"{len(paths)} could not be {what}: {', '.join(paths)}", file=sys.stderr)
    return 1 if count else 0


def _segment(
    config: Config, model: Any, variables: Any, image: np.ndarray, box: tuple[int, int] | None
) -> tuple[np.ndarray, str | None]:
    """Train ids u8[H,W] at the picture's own size, and a warning about its scale or None."""
    import numpy as np

    from mrm_jax.evaluation.evaluator import class_ids, fit
    from mrm_jax.evaluation.pictures import adapted, scale_warning

    size = (image.shape[0], image.shape[1])
    fitted = fit(image, box)
    at = (fitted.shape[0], fitted.shape[1])
    ids = class_ids(adapted(config, at), model, variables, fitted[None], size)
    return np.asarray(ids)[0], scale_warning(size, at, config.data.crop)


def _shares(ids: np.ndarray, config: Config) -> list[str]:
    import numpy as np

    pixels = np.bincount(ids.ravel(), minlength=len(config.data.classes.names))
    return [f"{number / ids.size:.6f}" for number in pixels]


def _write(to: Path, name: str, image: np.ndarray, ids: np.ndarray, config: Config) -> None:
    import cv2

    from mrm_jax.data.labels import colourise
    from mrm_jax.evaluation.pictures import PRODUCTS, write_png

    colour = colourise(ids, config.data.classes)
    pictures = (ids, colour, cv2.addWeighted(image, 0.5, colour, 0.5, 0))
    for product, picture in zip(PRODUCTS, pictures, strict=True):
        write_png(below(to, f"{name}{product}.png"), picture)
