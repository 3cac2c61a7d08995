"""Two libraries timed by turns: the arithmetic of pairs, the tables, and a side in a process of its
own. PyTorch itself is looked at where it is installed."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from refusals import refused

from mrm_jax.command import load_config
from mrm_jax.errors import RunError
from mrm_jax.machine import against, bench, table
from mrm_jax.machine.work import Call, Work
from mrm_jax.main import run

NEEDS_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra torch")
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
CONFIG = load_config(["--config=tiny:dacs"])


def loaded(words):
    return load_config(f"--config={words}".split(), {"model.encoder.weights": "any"})


QUIET = dict(say=lambda line: None)


class Clock:
    """A side whose calls take the seconds that stand in a list, one entry a turn after a call of
    100 s, which is not to be timed; the first entry is the trial's."""

    def __init__(self, name, turns, order):
        self.listed, self.versions = {("step", ""): 1}, {name: "1"}
        self.name, self.turns, self.order, self.asked = name, iter(turns), order, []
        self.warm = True

    def prepare(self, key):
        return {"compile_seconds": 2.0, "peak_bytes": 100, "products_seconds": 0.25}

    def calls(self, count):
        self.warm = not self.warm
        if self.warm:
            return {"wall": [100.0], "cpu": [100.0], "peak_bytes": 1}
        self.order.append(self.name)
        self.asked.append(count)
        seconds = next(self.turns)
        cpu = [2 * seconds] * count
        return {"wall": [seconds] * count, "cpu": cpu, "peak_bytes": int(1000 * seconds)}


def compared(ours, torch, repeats):
    order = []
    sides = [Clock(name, turns, order) for name, turns in (("ours", ours), ("torch", torch))]
    return against.compared(*sides, ("step", ""), repeats, **QUIET), order, sides


def test_a_ratio_is_that_of_a_pair_so_what_slows_both_down_does_not_count():
    # The second pair ran while the machine was four times slower; the first entry is the trial.
    found, _, _ = compared([1, 1, 4, 3], [1, 2, 8, 2], 3)
    assert [p["ours"]["wall"] / p["torch"]["wall"] for p in found["pairs"]] == [0.5, 0.5, 1.5]
    assert found["ratio"] == {"median": 0.5, "min": 0.5, "max": 1.5, "count": 3}
    assert found["cpu_ratio"] == found["ratio"]
    assert found["seconds"]["torch"]["max"] == 8
    assert found["cpu_seconds"]["ours"]["median"] == 6
    assert found["products_seconds"] == 0.25
    assert found["peak_bytes"] == {
        "ours": {"first": 100, "calls": 4000},
        "torch": {"first": 100, "calls": 8000},
    }


def test_neither_side_always_goes_first():
    _, order, _ = compared([1] * 4, [1] * 4, 3)
    assert order[2:] == ["ours", "torch", "torch", "ours", "ours", "torch"]


def test_short_calls_are_repeated_until_a_turn_is_long_enough():
    found, _, sides = compared([0.01, 0.01], [0.3, 0.3], 1)
    assert [side.asked for side in sides] == [[1, 20], [1, 1]]
    assert found["seconds"]["ours"]["median"] == pytest.approx(0.01)


# --- A side in a process of its own ---------------------------------------------------------------


def works(config, whats):
    """What a stand-in can time: of its second part nothing comes."""

    def fail():
        raise ValueError("no such\nlayer")

    held = bytearray(50_000_000) if "step" in whats else b""
    counted = {"flops": 1.0, "products_seconds": 0.5}
    made = Work("step", make=lambda: Call(lambda: sum(held[:1000]), counted))
    return [made, Work("forward", "head", times=3, make=fail)]


def versions():
    return {"standin": "7"}


@pytest.fixture
def side(monkeypatch):
    """This file as a side."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(against.SIDES, "torch", "test_against")
    with against.opened("torch", CONFIG, ["step"]) as opened:
        yield opened


def test_a_side_runs_in_a_process_of_its_own_and_says_what_it_holds(side):
    assert side.listed == {("step", ""): 1, ("forward", "head"): 3}
    assert side.versions == {"standin": "7"}
    first = side.prepare(("step", ""))
    told = side.calls(4)
    assert len(told["wall"]) == len(told["cpu"]) == 4
    assert first["peak_bytes"] > 50_000_000
    assert first["products_seconds"] == 0.5
    assert told["peak_bytes"] is None or told["peak_bytes"] > 50_000_000


def test_what_goes_wrong_there_is_one_line_here(side):
    with pytest.raises(RunError, match="^torch failed: ValueError: no such layer$"):
        side.prepare(("forward", "head"))


def test_without_torch_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: None)
    with refused("--against", "torch", way_out="pip install 'mrm-jax[torch]'"):
        run(["bench", "--config=tiny:dacs", "--against", "torch"])


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("tiny:dacs,mrm=true", "config.method.mrm.enabled"),
        ("tiny:hrda", "config.model.multires.enabled"),
        ("tiny:dacs,encoder=mobilenet_v2", "config.model.encoder.kind"),
        ("tiny:source_only", "config.method.kind"),
        ("tiny:mic", "config.model.multires.enabled"),
        ("tiny:mic,hrda=false --config.method.mic.images=both", "config.method.mic.images"),
        ("tiny:dacs --config.method.contrast.weight=0.1", "config.method.contrast.weight"),
        ("tiny:dacs --config.method.teacher_dtype=bfloat16", "config.method.teacher_dtype"),
        ("tiny:dacs --config.method.teacher_flip=true", "config.method.teacher_flip"),
        ("tiny:dacs --config.method.weight_over=image", "config.method.weight_over"),
        ("tiny:dacs --config.method.mix_classes_of=image", "config.method.mix_classes_of"),
    ],
)
def test_what_pytorch_has_no_counterpart_of_is_refused(words, field, monkeypatch):
    monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: name)
    with refused(field):
        against.check_counterpart(loaded(words))


def test_hidden_tokens_are_refused_where_something_is_hidden(monkeypatch):
    monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: name)
    config = loaded("tiny:mic,hrda=false")
    against.check_counterpart(config)
    method = replace(config.method, mic=replace(config.method.mic, hide="tokens"))
    with refused("config.method.mic.hide"):
        against.check_counterpart(replace(config, method=method))
    against.check_counterpart(replace(config, method=replace(method, kind="dacs")))


@NEEDS_TORCH
def test_pytorch_has_the_parts_of_ours_and_a_step_that_learns():
    with against.opened("torch", CONFIG, ["parts", "step"]) as side:
        assert {part for _, part in side.listed} >= {"encoder/block1/attn", "decoder/fuse", "ema"}
        side.prepare(("step", ""))
        assert side.calls(1)["wall"][0] > 0


@NEEDS_TORCH
def test_mic_has_a_third_loss_on_the_target_with_blocks_hidden():
    from mrm_jax.machine.torch_peer.step import Training

    def stepped(weight):
        words = (
            f"tiny:mic,hrda=false --config.method.mic.weight={weight} --config.method.mic.block=4 "
            "--config.method.mic.ratio=0.4 --config.method.threshold=0 "
            "--config.method.augment.jitter_probability=0 "
            "--config.method.augment.blur_probability=0"
        )
        training, seen = Training(loaded(words)).with_teacher(), []
        training.student.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        return training, seen, training.step()

    training, seen, losses = stepped(1.0)
    assert len(seen) == len(losses) == 3
    assert losses[2] > 0
    # Both draw the same: only the weight of the last loss is another.
    assert stepped(3.0)[2] == pytest.approx([*losses[:2], 3 * losses[2]])
    target = training.normalised(training.batch[1])
    hidden = (seen[2] == 0).all(1)
    assert (seen[2] == target.masked_fill(hidden[:, None], 0)).all()
    # 2 pictures of 8 x 16 blocks of 4 px, each hidden as a whole or not at all.
    shares = hidden.float().reshape(2, 8, 4, 16, 4).mean((2, 4))
    assert set(shares.unique().tolist()) == {0.0, 1.0}
    assert (shares[:, ::2] != shares[:, 1::2]).any()  # nor in larger blocks
    assert (shares[:, :, ::2] != shares[:, :, 1::2]).any()
    assert shares.mean().item() == pytest.approx(0.4, abs=0.1)


@NEEDS_TORCH
def test_pytorch_predicts_in_eval_mode_and_learns_in_training_mode(monkeypatch):
    from mrm_jax.machine.torch_peer import step, works

    made = []
    real = step.Training
    monkeypatch.setattr(
        works.steps, "Training", lambda config: made.append(real(config)) or made[-1]
    )
    listed = {w.what: w for w in works.works(CONFIG, ["inference", "forward", "backward", "step"])}
    assert list(listed) == ["inference", "forward", "backward", "step"]
    (training,) = made
    before = {name: value.clone() for name, value in training.student.named_buffers()}
    call = listed["inference"].make()
    ids = call.run()
    assert (ids == call.run()).all()
    assert all((value == before[name]).all() for name, value in training.student.named_buffers())
    for what in ("forward", "backward", "step"):
        training.in_mode(False)
        listed[what].make()
        assert all(module.training for module in training.student.modules())
    ours = next(iter(bench.works(CONFIG, ["inference"]))).make().run()[0]
    assert tuple(ids.shape) == ours.shape == (1, *CONFIG.data.crop)
    assert str(ids.dtype) == f"torch.{ours.dtype}" == "torch.uint8"


@NEEDS_TORCH
def test_pytorch_gives_the_classes_of_its_enlarged_logits():
    import torch  # pyright: ignore[reportMissingImports]

    from mrm_jax.machine.torch_peer.step import Training

    training = Training(CONFIG).in_mode(False)
    with torch.no_grad():
        logits, _ = training.student(training.normalised(training.batch[1][:1]))
    ids = training.classes()
    assert ids.is_inference()
    assert len(ids.unique()) > 1
    # At a corner nothing is between two cells.
    assert ids[0, 0, 0] == logits[0, :, 0, 0].argmax()
    assert ids[0, -1, -1] == logits[0, :, -1, -1].argmax()


# --- Tables ---------------------------------------------------------------------------------------


def report(part="", times=1, ours=1.0, torch=2.0, **more):
    order = []
    sides = [Clock(n, [s] * 3, order) for n, s in (("ours", ours), ("torch", torch))]
    found = against.compared(*sides, ("step", ""), 2, **QUIET)
    machine = {"cores": 2, "instructions": "avx2", "load": {"before": 0.1, "now": 1.9}}
    facts = {"config": "tiny:dacs", "versions": {"jax": "1", "torch": "2"}, "machine": machine}
    return {**found, "part": part, "times": times, **facts, **more}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_table_has_ratios_by_machine_and_changes(tmp_path, capsys):
    change = {"change": "one pass", "measure": "ours / torch", "before": 1.83, "after": 1.2}
    file = written(tmp_path / "a.jsonl", report(), report("head", 3, 2, 1), change)
    assert run(["bench", "--table", file]) == 0
    text = capsys.readouterr().out
    assert "**2 cores, avx2; jax 1, torch 2**; load 0.1 to 1.9, our own work included" in text
    assert "| `tiny:dacs` | step | 0.50 (0.50 to 0.50) | 2 | 0.50 (0.50 to 0.50) | 1 s |" in text
    assert "| 250 ms | 2 s |" in text
    # Three such parts lose a second each.
    assert "| head | 3 | step | 2.00 (2.00 to 2.00) | 2.00 | 2 s | 1 s | 3e+03 ms |" in text
    assert "| one pass | ours / torch | 1.83 -> 1.2 |" in text


def test_inference_is_a_row_like_the_others():
    text = table.tables([report(what="inference"), report()])
    rows = [line for line in text.splitlines() if line.startswith("| `tiny:dacs`")]
    assert [row.split(" | ")[1] for row in rows] == ["inference", "step"]


def test_parts_that_lose_most_come_first():
    rows = [report(name, times, 1, 0.9) for name, times in (("few", 1), ("many", 40))]
    text = table.tables(rows)
    assert text.index("| many |") < text.index("| few |")


def test_a_page_keeps_its_words_and_gets_the_tables(tmp_path):
    page, file = tmp_path / "page.md", written(tmp_path / "a.jsonl", report())
    page.write_text(f"Before.\n{table.BEGIN}\nold\n{table.END}\nAfter.\n")
    for _ in range(2):
        assert run(["bench", "--table", file, "--to", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"Before.\n{table.BEGIN}\n**2 cores")
    assert text.endswith(f"|\n{table.END}\nAfter.\n")
    assert "old" not in text
    page.write_text("No place.\n")
    with refused("--to", page):
        run(["bench", "--table", file, "--to", str(page)])


def test_a_line_that_is_no_report_is_named(tmp_path):
    file = written(tmp_path / "a.jsonl", report(), {"what": "step"})
    with refused("--table", Path(file), way_out="take it out"):
        run(["bench", "--table", file])


def test_the_page_on_performance_is_what_its_command_writes():
    stored = PAGE.with_suffix(".jsonl")
    between = PAGE.read_text().partition(table.BEGIN)[2].partition(table.END)[0]
    assert between.strip() == table.tables(table.read([stored])).strip()
