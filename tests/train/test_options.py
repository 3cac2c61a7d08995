"""What an option's declaration says of the training step is what the step does with it."""

import functools

import jax
import numpy as np
import pytest
import standin
from toy_run import TINY

from mrm_jax import options
from mrm_jax.command import load_config
from mrm_jax.config import Config
from mrm_jax.train.step import build_step, structure

DECLARED = options.declared(Config)
NOT_COMPILED = [path for path, option in DECLARED.items() if option.step != "compiled"]
COMPILED = [path for path, option in DECLARED.items() if option.step == "compiled"]


def another(option, value):
    """A value of the option's type, choices and range that is not `value`."""
    if option.choices and not isinstance(value, tuple):
        return next(choice for choice in option.choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        step = 1 if isinstance(value, int) else 0.125
        return value + step if option.high is None or value + step <= option.high else value - step
    if isinstance(value, tuple):
        return value[:-1] if value else ("another",)
    return "another"


def everything(kind="mic", **fields):
    """A stand-in run in which every loss has a weight and every option of the step a part."""
    weights = {f"method.{n}.weight": 0.5 for n in ("feature_distance", "contrast", "mim", "mrm")}
    return options.edited(standin.config(kind=kind, hrda=True), {**weights, **fields})


@functools.cache
def lowered(make, config):
    """The text of the step that `config` itself, not its structure, gives."""
    program = make(config)
    state = jax.eval_shape(program.init, jax.ShapeDtypeStruct((2,), np.uint32))
    encoder = {"params": state.params["segmentor"]["encoder"], "batch_stats": {}}
    frozen = jax.eval_shape(lambda encoder: program.frozen(config, encoder), encoder)
    batch = standin.batch(size=(config.train.batch, *config.data.crop))
    return jax.jit(program.train_step).lower(state, frozen, batch).as_text()


@pytest.mark.parametrize("path", COMPILED)
def test_an_option_that_the_step_is_compiled_for_gives_another_program(path):
    config = everything()
    value = another(DECLARED[path], options.value_of(config, path))
    assert structure(options.edited(config, {path: value})) != structure(config)


def test_every_other_option_shares_the_program():
    config = everything()
    for path in NOT_COMPILED:
        value = another(DECLARED[path], options.value_of(config, path))
        assert structure(options.edited(config, {path: value})) == structure(config), path


STEPS = {  # every loss around a stand-in; and real networks, which read the options of the model
    "losses": (standin.program, everything),
    "networks": (
        build_step,
        lambda: load_config([f"--config={TINY}", "--config.method.mrm.depth=1"]),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_option_that_is_traced_or_reaches_no_step_does_not_change_what_is_compiled(name):
    make, config = STEPS[name][0], STEPS[name][1]()
    values = {path: options.value_of(config, path) for path in NOT_COMPILED}
    changed = {
        path: another(DECLARED[path], value)
        for path, value in values.items()
        if DECLARED[path].step != "weight" or value > 0  # one that is off stays off
    }
    asked = changed
    while lowered(make, options.edited(config, changed)) != lowered(make, config):
        (path, value), *others = changed.items()
        assert others, f"{path} is in the step and declared {DECLARED[path].step}"
        half = dict(others[: len(others) // 2] + [(path, value)])  # which of them it is
        same = lowered(make, options.edited(config, half)) == lowered(make, config)
        changed = {p: v for p, v in changed.items() if (p in half) != same}
    assert changed is asked, "several options together change the step"


def test_a_loss_that_is_off_is_compiled_otherwise():
    config = everything()
    weights = [path for path, option in DECLARED.items() if option.step == "weight"]
    assert len(weights) == 3
    for path in weights:
        assert structure(options.edited(config, {path: 0.0})) != structure(config)


def test_an_option_says_only_what_is_meant_by_its_way_to_the_step():
    for path, option in DECLARED.items():
        assert option.number is None or option.step == "traced", path
        assert not (option.runtime and option.step in ("traced", "weight")), path
