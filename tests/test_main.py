"""The command line: verbs, config flags, and mistakes answered before jax is imported."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from refusals import refused

import mrm_jax
from mrm_jax import backend, command, main
from mrm_jax.config import Config
from mrm_jax.errors import RunError, UsageError
from mrm_jax.options import declared
from mrm_jax.runs import workdir

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
    ([f"--config={TINY}", "--config.train.steps=x"], "--config.train.steps is 'x'"),
    ([f"--config={TINY}", "--config.data.crop=(30,64)"], "not a multiple of 8"),
    ([f"--config={TINY}:source_only,mrm=true"], "needs a teacher"),
    ([f"--config={TINY}", "--config.ratio=1"], "'method.mim.ratio' or 'method.mrm.ratio'?"),
    ([f"--config={TINY}", "--config.train.steps=abc"], "'abc'; it must be a whole number, at lea"),
    ([f"--config={TINY}", "--config.method.mic.ratio=x"], "'x'; it must be a number, 0..1."),
    ([f"--config={TINY}", "--config.data.cache=x"], "'x'; it must be true or false."),
    ([f"--config={TINY}", "--config.data.crop=(1,"], "it must be a tuple of 2 whole numbers"),
    ([f"--config={TINY}", "--steps=5"], "Did you mean '--config.train.steps'?"),
    ([f"--config={TINY}", "--train.steps=5"], "Did you mean '--config.train.steps'?"),
    ([f"--config={TINY}", "--learning-rate=5"], "or '--config.optimizer.learning_rate'?"),
    ([f"--config={TINY}", "--stpes=5"], "Did you mean '--config.train.steps'?"),
    (["train", "configs/tiny.py"], "a config is given by --config configs/tiny.py."),
    (["configs/tiny.py:dacs"], "a config is given by --config configs/tiny.py:dacs."),
    (["tiny:dacs"], "a config is given by --config tiny:dacs."),
    (["evaluate", "words"], "unexpected words: words."),
    (["--config=quikstart"], "Did you mean 'quickstart'?"),
    (["--config=nowhere/tiny.py"], "The package has one: --config tiny."),
    (["--config.seed=1"], "none is given: add --config FILE"),
    ([""], "'' is not a verb"),
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


def test_help_names_every_verb_on_one_screen_and_so_do_no_arguments(capsys):
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in main.VERBS)
    lines = shown.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 84
    assert main.run([]) == 2
    assert capsys.readouterr().err == shown


def test_the_version_is_told(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"mrm_jax {mrm_jax.__version__}\n"


@pytest.mark.parametrize("verb", main.VERBS)
def test_the_usage_of_every_verb_names_config(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main.run([verb, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--config FILE[:RECIPE]" in shown.partition("options:")[0]


def test_the_configs_of_the_checkout_travel_in_the_package_and_open_by_bare_names(
    tmp_path, monkeypatch
):
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert command.packaged().keys() == names
    assert (ROOT / "mrm_jax/configs").resolve() == ROOT / "configs"
    wanted = main.load_config([f"--config={TINY}:source_only"])
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny.py"):
        assert main.load_config([f"--config={name}:source_only"]) == wanted
        assert command.remark([f"--config={name}"]) == ""


def test_a_file_here_goes_before_the_package_s_of_its_name_and_that_is_said(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own = Path(TINY).read_text().replace("steps=6", "steps=7")
    Path("tiny.py").write_text(own)
    for name in ("tiny", "tiny.py", "./tiny.py"):
        config = main.load_config([f"--config={name}"])
        assert config is not None
        assert config.train.steps == 7
    assert main.run(["options", "train.steps", "--config=tiny"]) == 0
    line = f"--config tiny: tiny.py of this folder is taken, not {command.CONFIGS / 'tiny.py'} of "
    assert capsys.readouterr().err.startswith(line)
    monkeypatch.chdir(ROOT / "configs")  # one file by two names
    assert command.remark(["--config=tiny"]) == ""


def test_config_prints_the_resolved_values_and_what_differs(capsys, tmp_path):
    assert main.run(["config", f"{TINY}:dacs", "--config.train.steps=7"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(declared(Config))
    assert {"train.steps = 7", "method.kind = 'dacs'", "model.encoder.weights = None"} <= {*shown}
    words = ["config", f"{TINY}:dacs", "--config.train.steps=7", "--diff"]
    wanted = ["method.mrm.enabled: False -> True", "train.steps: 7 -> 6"]
    assert main.run([*words, TINY]) == 0
    assert capsys.readouterr().out.splitlines() == wanted
    config = main.load_config([f"--config={TINY}"])
    assert config is not None
    workdir.begin(tmp_path, config, {})
    assert main.run([*words, str(tmp_path)]) == 0  # the folder of a run
    assert capsys.readouterr().out.splitlines() == wanted
    (tmp_path / "empty").mkdir()
    with refused("--diff", tmp_path / "empty", way_out="a run's folder"):
        main.run([*words, str(tmp_path / "empty")])


def test_config_shows_what_cannot_be_trained_as_it_is(capsys):
    assert main.run(["config", "gta_to_cityscapes:daformer"]) == 0
    shown = capsys.readouterr()
    assert "method.feature_distance.weight = 0.005" in shown.out
    assert shown.err.startswith("It cannot be trained as it is: config.method.feature_distance")


def test_jax_that_finds_no_device_is_one_line_of_every_verb(tmp_path):
    """Where it is asked for directly, and where the file that it was to read was blamed."""
    with zipfile.ZipFile(ROOT / "tests/runs_before/quickstart.zip") as packed:
        packed.extractall(tmp_path)
    (run,) = (path.parent for path in tmp_path.rglob("config.json"))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    commands = [
        ["train", "--config=tiny", f"--workdir={tmp_path}/new"],
        ["evaluate", f"--workdir={run}", f"--to={tmp_path}"],
        ["predict", f"{tmp_path}/a.png", f"--checkpoint={run}", f"--to={tmp_path}/to"],
        ["convert", f"--from={run}", f"--to_torch={tmp_path}/a.npz"],
        ["ablate", "--config=tiny", "--arm=dacs", "--seeds=1", f"--workdir={tmp_path}/all"],
        ["bench", "--config=tiny"],
        ["doctor", "--config=tiny"],
    ]
    code = (
        "import json, sys; from mrm_jax import load, main; from mrm_jax.errors import UsageError\n"
        "commands, there = json.loads(sys.argv[1]), sys.argv[2]\n"
        "for words in commands:\n"
        "    sys.argv = ['mrm-jax', *words]\n"
        "    print(words[0], main._answered(), flush=True)\n"
        "try: load(there)\n"
        "except UsageError as error: print(error.field, error.value)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands), str(run)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "nonsense"},
    )
    *verbs, doctor = [line for line in made.stdout.splitlines() if line[-2:] in (" 2", " 1")]
    assert [*verbs, doctor] == [f"{words[0]} 2" for words in commands[:-1]] + ["doctor 1"]
    assert "error   devices: JAX_PLATFORMS is 'nonsense', and JAX cannot use such a" in made.stdout
    assert made.stdout.splitlines()[-1] == "JAX_PLATFORMS nonsense"  # of mrm_jax.load
    lines = made.stderr.splitlines()
    assert len(lines) == len(commands) - 1
    assert all(line.startswith("mrm_jax: JAX_PLATFORMS is 'nonsense'") for line in lines)
    assert all("unset it" in line for line in lines)
    assert not (tmp_path / "new").exists()


def test_a_plugin_that_fails_bare_is_told_with_what_it_needs(monkeypatch):
    """Without jax's plugin for it JAX_PLATFORMS=cuda is an AssertionError without a word."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    there = str(Path("jax") / "_src" / "xla_bridge.py")
    source = compile("def backends():\n    assert False", there, "exec")
    names: dict = {}
    exec(source, names)  # its frames are named after jax's file

    def wrapped(kind):
        try:
            names["backends"]()
        except AssertionError as error:
            raise kind("could not be read") from error

    for kind in (RunError, ValueError):
        with pytest.raises(kind) as caught:
            wrapped(kind)
        line = backend.device_refusal(caught.value)
        assert isinstance(line, UsageError)
        assert (line.field, line.value) == ("JAX_PLATFORMS", "cuda")
        assert "pip install 'jax[cuda12]'" in line.way_out
    assert backend.device_refusal(ValueError("another one")) is None
    monkeypatch.delenv("JAX_PLATFORMS")
    assert isinstance(backend.device_refusal(caught.value), RunError)


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
