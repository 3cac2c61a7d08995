"""A run whose network is one number: the loop around it is the real one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mrm_jax.evaluation import protocols
from mrm_jax.evaluation.scores import EvaluationResult
from mrm_jax.main import load_config
from mrm_jax.runs import workdir
from mrm_jax.runs.checkpoint import FOLDER, load_run
from mrm_jax.train import ahead, hooks, loop, programs
from mrm_jax.train.state import scalars
from mrm_jax.train.step import Program
from mrm_jax.types import Draws, Frozen, TrainState

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"


def program(config, poisoned=()):
    """A step that moves one weight by the batch's brightness; `poisoned` batches are not finite."""
    classes = len(config.data.classes.names)
    bad = jnp.asarray([-1, *poisoned])

    def init(key):
        return TrainState(
            step=jnp.int32(0),
            params={
                "segmentor": {"scale": jnp.ones(()), "kernel": jnp.arange(4.0)},
                "rebuilder": {},
            },
            batch_stats={},
            teacher_params={},
            teacher_batch_stats={},
            opt_state={"bias": jnp.zeros(())},
            root_key=key,
        )

    def draw(root_key, step, index):
        key = jax.random.fold_in(jax.random.wrap_key_data(root_key), step)
        mix = jax.random.uniform(key, (index.shape[0], 256))
        return Draws(mix=mix, augment={}, mask={}, offset={}, module={})

    def train_step(state, frozen, batch):
        noise = draw(state.root_key, state.step, batch.index).mix[0, 0]
        faulty = jnp.isin(batch.index[0] // config.train.batch, bad)
        loss = jnp.where(faulty, jnp.nan, batch.source.image.mean() / 255)
        momentum = 0.9 * state.opt_state["bias"] + loss + noise
        moved = {name: leaf + momentum for name, leaf in state.params["segmentor"].items()}
        new = state.replace(
            step=state.step + 1,
            params={"segmentor": moved, "rebuilder": {}},
            opt_state={"bias": momentum},
        )
        # As in the real step: one that is not finite leaves the state as it was.
        finite = jnp.isfinite(loss)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        shares = jnp.full(classes, 1 / classes)
        teacher = {"teacher/class_share": shares, "teacher/confident_share": jnp.ones(())}
        return kept, {"total/loss": loss, "finite": finite, **teacher}

    def inspect(state, frozen, batch):
        return {"source/image": batch.source.image, "source/label": batch.source.label}

    return Program(
        networks=None,
        init=init,
        draw=draw,
        normalise=None,
        step_with=None,
        train_step=train_step,
        inspect=inspect,
        frozen=lambda config, encoder=None: Frozen(scalars(config), {}, {}),
    )


def evaluation(config, score):
    count = len(config.data.classes.names)
    return EvaluationResult(
        protocol=protocols.protocol_of(
            config, network="student", pictures=1, input_sizes={(32, 64)}, label_sizes={(32, 64)}
        ),
        classes=config.data.classes.names,
        confusion=np.zeros((count, count), np.int64),
        iou=np.full(count, score),
        mean_iou=score,
        pixel_accuracy=score,
        also={},
        seconds=0.0,
    )


class Toy:
    """Runs the loop in folders below `path`; `scores` are those after steps 1, 2, ..., `picks`
    those without labels (None: the same).
    """

    def __init__(self, path, monkeypatch):
        self.path = path
        self.poisoned = ()
        self.scores = [0.5] * 100
        self.picks = None
        monkeypatch.setattr(loop, "build_step", lambda config: program(config, self.poisoned))
        monkeypatch.setattr(hooks, "evaluate_on_hosts", self._evaluate)
        monkeypatch.setattr(hooks, "select", self._select)
        monkeypatch.setattr(ahead, "of_run", lambda *_: ahead.Ahead())  # no network to evaluate
        self.write_report = hooks.write_report  # the real one takes seconds
        monkeypatch.setattr(hooks, "write_report", self._report)

    def _evaluate(self, config, state, examples, **_):
        return {"student": evaluation(config, self.scores[int(state.step) - 1])}

    def _select(self, config, modules, state, crops):
        if crops is None:
            return {}
        return {"select/infomax": (self.picks or self.scores)[int(state.step) - 1]}

    def _report(self, folder):
        (folder / "report.html").write_text("")
        return folder / "report.html"

    def config(self, **overrides):
        words = [f"--config.{name.replace('__', '.')}={v}" for name, v in overrides.items()]
        return load_config([f"--config={TINY}", *words])

    def train(self, name="run", **overrides):
        config = self.config(**overrides)
        programs.shared.cache_clear()  # `poisoned` is part of the program, not of its config
        with workdir.opened_workdir(self.path / name, config) as folder:
            return loop.train(config, folder)

    def steps(self, name="run"):
        return sorted(int(p.name) for p in (self.path / name / FOLDER).iterdir())

    def weight(self, which, name="run"):
        return load_run(self.path / name, which).student["params"]["scale"]

    def lines(self, name="run"):
        """Whole lines of metrics.jsonl without what depends on the clock."""
        text = (self.path / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        kept = [{k: v for k, v in x.items() if not k.startswith("perf/")} for x in lines]
        return [line for line in kept if set(line) != {"step"}]
