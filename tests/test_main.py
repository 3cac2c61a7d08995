"""The command line: verbs, config flags, and mistakes answered before jax is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from mrm_jax import main
from mrm_jax.errors import UsageError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "tiny.py")


def test_flags_override_fields_of_every_type():
    cfg = main.load_config(
        [
            *(f"--config={TINY}:dacs", "--config.train.steps=30", "--config.data.flip=0"),
            *("--config.data.crop=(64,128)", "--noconfig.data.cache"),
            *("--config.data.target.path=there", "--config.data.target.resize=(128,64)"),
            *("--config.model.dtype=bfloat16", "--config.method.mrm.enabled"),
        ]
    )
    assert cfg is not None
    assert (cfg.train.steps, cfg.data.flip, cfg.data.cache) == (30, 0.0, False)
    assert (cfg.data.crop, cfg.data.target.resize) == ((64, 128), (128, 64))
    assert (cfg.data.target.path, cfg.model.dtype) == ("there", "bfloat16")
    assert cfg.method.mrm.enabled


MISTAKES = [
    (["--config=configs/tinny.py"], "there is no file 'configs/tinny.py'. Did you mean"),
    ([f"--config={TINY}:dac"], "Did you mean 'dacs'?"),
    ([f"--config={TINY}", "--config.train.stepps=3"], "Did you mean 'train.steps'?"),
    ([f"--config={TINY}", "--config.steps=3"], "Did you mean 'train.steps'?"),
    ([f"--config={TINY}", "--config.train=3"], "is a group of options"),
    ([f"--config={TINY}", "--config.train.steps"], "needs a value"),
    ([f"--config={TINY}", "--config.train.steps=x"], "--config.train.steps=x"),
    ([f"--config={TINY}", "--config.data.crop=(30,64)"], "not a multiple of 8"),
    ([f"--config={TINY}:source_only,mrm=true"], "needs a teacher"),
    (["--config.seed=1"], "none is given: add --config FILE"),
    ([""], "'' is no verb"),
    (["tarin", f"--config={TINY}"], "Did you mean 'train'?"),
    (["train", f"--config={TINY}", "--wrokdir=x"], "Did you mean '--workdir'?"),
    (["evaluate", "--wrokdir", "x"], "Did you mean '--workdir'?"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_a_mistake_is_one_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    workdir = [] if "train" in words else [f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(UsageError) as caught:
        main.run([*words, *workdir])
    assert message in " ".join(str(caught.value).split())
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_fails_is_named_with_its_error(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no luck')")
    with pytest.raises(UsageError, match="broken.py fails: RuntimeError: no luck"):
        main.load_config([f"--config={broken}"])


def test_a_mistake_exits_with_two_before_jax_is_imported(tmp_path):
    code = (
        "import sys; sys.argv = ['mrm_jax', 'train', '--config', sys.argv[1],"
        " '--config.train.stepps=3', '--workdir', sys.argv[2]]\n"
        "from mrm_jax import main\n"
        "try: main.entry()\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules)"
    )
    words = [sys.executable, "-c", code, TINY, str(tmp_path / "run")]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["2", "False"]
    assert result.stderr.strip().splitlines() == [
        "mrm_jax: --config.train.stepps is not an option. Did you mean 'train.steps'?"
    ]


def test_help_names_every_verb(capsys):
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in main.VERBS)


def test_a_damaged_checkpoint_is_one_line_and_exit_code_1(monkeypatch, capsys, tmp_path):
    from mrm_jax.runs.saved import DamagedError

    def damaged(_):
        raise DamagedError(tmp_path / "3", "student/_METADATA is not there")

    monkeypatch.setattr(main, "run", damaged)
    monkeypatch.setattr("sys.argv", ["mrm_jax"])
    with pytest.raises(SystemExit) as exit_code:
        main.entry()
    assert exit_code.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
