"""A checkpoint of an untrained toy network, saved as training saves one."""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from mrm_jax import config
from mrm_jax.runs.checkpoint import Checkpoints
from mrm_jax.train.state import build_networks, init_state

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

import toys  # noqa: E402

CONFIG = config.Config(
    data=config.Data(
        classes=config.Classes(
            names=("road", "car", "sky"), colours=((128, 64, 128), (0, 0, 142), (70, 130, 180))
        ),
        source=config.Domain(kind="drawn"),
        target=config.Domain(kind="drawn"),
        evaluation=config.Domain(images="images", labels="labels", resize=(64, 48)),
        crop=(32, 32),
    ),
    model=toys.CONFIG.model,
    method=config.Method(
        mrm=config.MRM(enabled=True, grid=(4, 4), dim=8, depth=1, heads=2),
    ),
    evaluation=config.Evaluation(batch=2),
)


def with_data(path) -> config.Config:
    """The config with its evaluation pictures below `path`."""
    domain = replace(CONFIG.data.evaluation, path=str(path))
    return replace(CONFIG, data=replace(CONFIG.data, evaluation=domain))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder of four pictures of two sizes, with labels."""
    import cv2

    root, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    for i, size in enumerate([(48, 64), (96, 128), (48, 64), (48, 64)]):
        label = rng.choice([0, 1, 2, 255], size).astype(np.uint8)
        for folder, array in (
            ("images", rng.integers(0, 256, (*size, 3), np.uint8)),
            ("labels", label),
        ):
            path = root / folder / "town" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
    return root


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, dataset):
    """See `saved_run`."""
    return saved_run(tmp_path_factory.mktemp("run"), with_data(dataset))


def saved_run(path, cfg) -> Path:
    """A run's folder with checkpoints at steps 3 (best by labels) and 7 (picked without them);
    teacher and student differ.
    """
    shapes = jax.eval_shape(partial(init_state, cfg, build_networks(cfg)), jax.random.key(0))
    rng = np.random.default_rng(1)

    def some(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(0.1, 0.5, leaf.shape).astype(np.float32)

    state = jax.tree.map(some, shapes.replace(root_key=np.zeros(2, np.uint32)))
    spread = jax.tree.map(lambda leaf: np.abs(some(leaf)), state.batch_stats)
    state = state.replace(batch_stats=spread, teacher_batch_stats=spread)
    checkpoints = Checkpoints(path / "checkpoints", keep=2)
    for step, score, pick in ((3, 0.5, 0.1), (7, 0.25, 0.2)):
        state = state.replace(teacher_params=jax.tree.map(some, state.teacher_params))
        scores = {"eval/student/mIoU": score, "select/infomax": pick}
        facts = {"config": asdict(cfg), "scores": scores}
        checkpoints.save(step, state, facts)
    checkpoints.close()
    return path
