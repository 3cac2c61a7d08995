"""`evaluate`: scores a run's checkpoint on labelled pictures, and says by which protocol."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrm_jax import terminal
from mrm_jax.cli.progress import progress_bar
from mrm_jax.config import Config, Domain, evaluation_domain
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import declared, edited
from mrm_jax.paths import is_remote, located, what_is_wrong

if TYPE_CHECKING:
    import numpy as np

    from mrm_jax.evaluation.scores import EvaluationResult

NETWORKS = ("student", "teacher")

UNREAD = {"model.encoder.weights": "any"}
"""Fields that a score does not depend on, with what stands for them where they are not set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb besides `--config`."""
    add_checkpoint_arguments(parser)
    add_protocol_arguments(parser)
    parser.add_argument(
        "--network",
        choices=(*NETWORKS, "both"),
        default="both",
        help="whose scores; the student's are the papers' numbers (default: both)",
    )
    parser.add_argument(
        "--path",
        type=located,
        help="another folder of the same layout as the config's evaluation pictures",
    )
    parser.add_argument(
        "--save_predictions",
        type=located,
        metavar="DIR",
        help="write one 8-bit PNG of train ids a picture; of the student unless --network teacher",
    )
    parser.add_argument(
        "--to",
        type=located,
        metavar="DIR",
        help="folder of evaluation.json (default: that of the run or of the converted network)",
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--workdir | --checkpoint` and `--which`, for verbs that open a run."""
    where = parser.add_mutually_exclusive_group(required=required)
    where.add_argument("--workdir", type=located, help="folder of a run")
    where.add_argument("--checkpoint", type=located, help="a run's folder or one checkpoint in it")
    parser.add_argument(
        "--which",
        default="last",
        metavar="last|best|picked|STEP",
        help="which checkpoint where there are several: the newest, the best by labels, the one "
        "picked without labels, or a step (default: last)",
    )


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """`--tta` and `--whole_pixels`, for verbs that look at pictures."""
    said = declared(Config)["evaluation.whole_pixels"]
    parser.add_argument(
        "--tta",
        metavar="flip,0.75,1.25",
        help="average probabilities over the mirrored picture, too (flip), and over these scales "
        "besides 1",
    )
    parser.add_argument(
        "--whole_pixels",
        type=int,
        metavar="PX",
        help=f"{said.doc} Default: the run's, {said.default} unless set",
    )


def with_protocol(config: Config, arguments: argparse.Namespace) -> Config:
    """`config` with what `add_protocol_arguments` were given; UsageError for a wrong value."""
    values: dict[str, Any] = {}
    if arguments.whole_pixels is not None:
        values["evaluation.whole_pixels"] = arguments.whole_pixels
    if arguments.tta is not None:
        words = [word.strip() for word in arguments.tta.split(",")]
        values["evaluation.flip"] = "flip" in words
        try:
            scales = {1.0, *(float(word) for word in words if word != "flip")}
        except ValueError as error:
            raise UsageError.of(
                "--tta", arguments.tta, "", "give flip, scales, or both, such as flip,0.75,1.25."
            ) from error
        values["evaluation.scales"] = tuple(sorted(scales))
    for path, value in values.items():
        declared(Config)[path].check(value)
    return edited(config, values)


def run(arguments: argparse.Namespace, config: Config | None) -> int:
    """Writes evaluation.json and confusion_<network>.png, and prints the scores; exit code.

    `config`, if given, says what is evaluated on and how (`data.evaluation`, `evaluation`); the
    network is the checkpoint's. Raises UsageError, or RunError for a folder that cannot be written.
    """
    from mrm_jax.opening import opened_networks
    from mrm_jax.runs.checkpoint import load_run

    loaded = load_run(arguments.workdir or arguments.checkpoint, arguments.which)
    protocol = with_protocol(_protocol(loaded.config, config, arguments.path), arguments)
    nets = opened_networks(loaded, arguments.network, lambda _: protocol)
    console = terminal.console()
    console.print(
        f"checkpoint: {arguments.workdir or arguments.checkpoint}, step {loaded.step}",
        markup=False,
        soft_wrap=True,
    )

    from mrm_jax.data.pipeline import Examples, evaluation_set
    from mrm_jax.evaluation.evaluator import evaluate_networks
    from mrm_jax.evaluation.scores import evaluation_document
    from mrm_jax.evaluation.table import score_table

    examples = evaluation_set(protocol)
    if not isinstance(examples, Examples) or not examples:
        raise UsageError(
            "There is nothing to score on: data.evaluation.labels of the run is empty.",
            "Name labelled pictures by --config FILE --config.data.evaluation.labels=FOLDER.",
            field="config.data.evaluation.labels",
            value="",
        )
    folder = _home(arguments)
    saver = _saver(arguments.save_predictions, next(iter(nets)), examples.names)
    with progress_bar("pictures", len(examples)) as advance:
        found = evaluate_networks(
            protocol,
            next(iter(nets.values())).module,
            {name: net.variables for name, net in nets.items()},
            examples,
            progress=lambda done, total: advance(done),
            on_prediction=saver,
        )
    console.print(score_table(loaded.step, found))
    sentence = next(iter(found.values())).sentence()
    console.print(sentence, markup=False, soft_wrap=True)
    facts = {"checkpoint": str(arguments.workdir or arguments.checkpoint), "step": loaded.step}
    document = evaluation_document(found, **facts)
    for path in _write(folder, document, found, evaluation_domain(protocol)):
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    return 0


def _protocol(trained: Config, given: Config | None, path: Path | None) -> Config:
    """The checkpoint's config with the pictures and the protocol that the command asks for."""
    data, evaluation = trained.data, trained.evaluation
    domain = evaluation_domain(trained)
    if given is not None:
        if given.data.classes.names != data.classes.names:
            raise UsageError.at(
                "--config",
                f" has the classes {', '.join(given.data.classes.names)}; the checkpoint was "
                f"trained on {', '.join(data.classes.names)}. They must be the same.",
            )
        evaluation, domain = given.evaluation, evaluation_domain(given)
    if path is not None:
        if domain.kind != "folder":
            raise UsageError(
                f"--path {path}: the evaluation pictures of this config are drawn.",
                "Give --config with a folder's layout as data.evaluation.",
                field="--path",
                value=path,
            )
        domain = dataclasses.replace(domain, path=str(path))
    data = dataclasses.replace(data, evaluation=domain)
    return dataclasses.replace(trained, data=data, evaluation=evaluation)


def _home(arguments: argparse.Namespace) -> Path:
    """Where evaluation.json goes. Raises UsageError, before hours are spent on the scores, where
    --to was not given and nothing can be written beside the run."""
    if arguments.to is not None:
        return arguments.to
    folder = run_folder(arguments.workdir or arguments.checkpoint)
    if not is_remote(folder) and not os.access(folder, os.W_OK):
        raise UsageError.at(
            folder, " cannot be written", "add --to DIR, a folder of evaluation.json."
        )
    return folder


def run_folder(path: Path) -> Path:
    """The folder of the run that a `--checkpoint` is of, in which its evaluation.json lies."""
    from mrm_jax.runs.checkpoint import FOLDER

    if (path / "student").is_dir():  # one checkpoint, of a run or copied out of it
        path = path.parent
    return path.parent if path.name == FOLDER else path


def _saver(
    folder: Path | None, network: str, names: Sequence[str]
) -> Callable[[str, str, np.ndarray], None] | None:
    if folder is None:
        return None

    from mrm_jax.evaluation.pictures import prediction_files, write_png

    files = prediction_files(names, folder)

    def save(whose: str, name: str, ids: np.ndarray) -> None:
        if whose == network:
            write_png(files[name], ids)

    return save


def _write(
    folder: Path, values: dict, found: Mapping[str, EvaluationResult], domain: Domain
) -> list[Path]:
    """Writes evaluation.json and, of each network, the picture of its confusions on `domain`."""
    from mrm_jax.report.matrix import save_matrix
    from mrm_jax.report.panels import sheet_title
    from mrm_jax.runs.workdir import write_json

    written = [folder / "evaluation.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(written[0], values)
        for name, result in found.items():
            title = f"{name}, step {values['step']}: mIoU {result.mean_iou:.1%}"
            title, path = sheet_title(title, domain), folder / f"confusion_{name}.png"
            written.append(save_matrix(result.confusion, result.classes, title, path))
    except OSError as error:
        raise RunError.at(
            folder, f" cannot be written: {what_is_wrong(error)}", "add --to DIR, another folder."
        ) from error
    return written
