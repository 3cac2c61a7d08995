"""Arms of a comparison: from what a user writes to recipes, flags and folders."""

import pytest

from mrm_jax import arms
from mrm_jax.arms import Arm
from mrm_jax.errors import UsageError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dacs", Arm("dacs", "dacs")),
        ("dacs,mrm=true", Arm("dacs,mrm=true", "dacs,mrm=true")),
        ("with MRM: dacs,mrm=true", Arm("with MRM", "dacs,mrm=true")),
        (
            "half: dacs --config.data.crop='(10, 20)' --noconfig.data.cache",
            Arm("half", "dacs", ("--config.data.crop=(10, 20)", "--noconfig.data.cache")),
        ),
        (
            "dacs --config.train.init_from=a:b",
            Arm("dacs --config.train.init_from=a:b", "dacs", ("--config.train.init_from=a:b",)),
        ),
    ],
)
def test_an_arm_is_a_name_a_recipe_and_flags(words, expected):
    assert arms.parse_arm(words) == expected


def test_a_sweep_gives_every_arm_every_value_of_the_field():
    swept = arms.sweep([Arm("dacs"), Arm("mic", flags=("--config.seed=3",))], "train.batch=1,2")
    assert swept == [
        Arm("dacs batch=1", "dacs", ("--config.train.batch=1",)),
        Arm("dacs batch=2", "dacs", ("--config.train.batch=2",)),
        Arm("mic batch=1", "mic", ("--config.seed=3", "--config.train.batch=1")),
        Arm("mic batch=2", "mic", ("--config.seed=3", "--config.train.batch=2")),
    ]


def test_names_become_folders_of_their_own():
    assert Arm("dacs + mrm").folder == "dacs_mrm"
    with pytest.raises(UsageError, match="name them apart"):
        arms.check_arms([Arm("a b"), Arm("a+b")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arms.parse_arm("--config.seed=1"), "name a recipe first"),
        (lambda: arms.parse_arm("dacs mrm=true"), "'mrm=true' is no config flag"),
        (lambda: arms.sweep([Arm("dacs")], "method.mrm.ratio"), "FIELD=VALUE"),
        (lambda: arms.named_arms({"methods": ()}, "method"), "Did you mean 'methods'"),
        (lambda: arms.named_arms({}, "methods"), "there are: none"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()
