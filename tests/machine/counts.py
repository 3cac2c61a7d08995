"""What small runs cost by counts that do not jitter, beside what they cost when counts.json was
written. As a command it says what changed, and with --write takes it over:

    python tests/machine/counts.py [--write]
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

# AVX2 at most, so that processors with AVX-512 make the same programs; two devices, as in conftest.
WIDEST = "avx2"
if __name__ == "__main__" and platform.machine() == "x86_64":
    devices, isa = "--xla_force_host_platform_device_count=2", f"--xla_cpu_max_isa={WIDEST.upper()}"
    os.environ["XLA_FLAGS"] = f"{devices} {isa}"

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: E402, F401  before jax: two devices, one compilation cache
import jax  # noqa: E402

from mrm_jax import main, sharding  # noqa: E402
from mrm_jax.command import load_config  # noqa: E402
from mrm_jax.machine.against import instructions  # noqa: E402
from mrm_jax.machine.estimate import flops  # noqa: E402
from mrm_jax.machine.plan import abstract_arguments  # noqa: E402
from mrm_jax.machine.work import cores, costs  # noqa: E402
from mrm_jax.train.programs import lower  # noqa: E402
from mrm_jax.train.step import build_step  # noqa: E402

FILE = Path(__file__).with_name("counts.json")
CONFIGS = Path(__file__).parents[2] / "configs"
ACCEPT = "python tests/machine/counts.py --write"

COMPILED = ("tiny.py", "tiny.py:source_only", "tiny.py:mic")
"""Steps whose program is counted as XLA compiles it for training. The quickstart's alone would take
40 s."""
TRACED = (
    "quickstart.py",
    *("benchmark.py:source_only", "benchmark.py:dacs,mrm=true", "benchmark.py:mic,mrm=true"),
)
"""Steps whose products are counted before XLA sees them; the last has all that hrda has, too."""


def key() -> str:
    """Whose figures: XLA of another version, or for other processors, makes other programs."""
    devices = f"{jax.device_count()} {jax.default_backend()}"
    alike = ("amx_tile", "avx512f", WIDEST)  # their figures are the same, compared once
    used = WIDEST if instructions() in alike else instructions()
    processor = f"{platform.machine()} with {used}, {cores()} cores"
    return f"jax {jax.__version__}, {devices} devices, {processor}"


def counted() -> dict[str, dict[str, float]]:
    """All figures, by run."""
    found = {"tiny.py, trained": {"compilations": compilations()}}
    for name in COMPILED:
        found[name] = of_step(name, compiled=True)
    for name in TRACED:
        found[name] = of_step(name, compiled=False)
    return found


def of_step(name: str, *, compiled: bool) -> dict[str, float]:
    """Of the train step that a run of this config compiles."""
    config = load_config([f"--config={CONFIGS / name}"], {"model.encoder.weights": "any"})
    program, mesh = build_step(config), sharding.run_mesh(config)
    arguments = abstract_arguments(config, program, mesh)
    state, _, frozen, fed = arguments
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # whose forms alone are traced
        traced = jax.make_jaxpr(program.train_step)(state, frozen, fed.batch)
    figures = {"flops of products": flops(traced)}
    if compiled:
        options = None if config.train.optimise else sharding.quick(mesh)
        step = lower(program, mesh, arguments).compile(compiler_options=options)
        told = costs(step)
        figures |= {
            "flops": told["flops"],
            "bytes accessed": told["bytes_accessed"],
            "bytes of temporaries": step.memory_analysis().temp_size_in_bytes,
            "bytes at the peak": told["peak_bytes"],
        }
    return {name: int(number) for name, number in figures.items()}


def compilations() -> int:
    """Programs of different names that a short run asks the compiler or its cache for, in a process
    that compiled nothing before. Of one name a thread may ask for one more or not."""
    seen: set[str] = set()

    def heard(event: str, *_: float, **about: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.add(str(about["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(heard)
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", str(CONFIGS / "tiny.py"), "--workdir", folder]
        assert main.run([*words, "--config.train.steps=3"]) == 0
    return len(seen)


def changes(before: dict, now: dict) -> list[str]:
    """A line for every figure that is another, says by how much."""
    lines = []
    for run in sorted({*before, *now}):
        old, new = before.get(run, {}), now.get(run, {})
        for what in sorted({*old, *new}):
            a, b = old.get(what), new.get(what)
            # Of the programs that a thread compiles ahead, 15 or 14 were asked for on one machine.
            fewer = what == "compilations" and None not in (a, b) and b < a
            if a == b or fewer:
                continue
            share = f" ({b / a - 1:+.2%})" if a and b is not None else ""
            lines.append(f"{run}: {what} {a} -> {b}{share}")
    return lines


def complaint(before: dict, now: dict) -> str:
    """What changed and the command that accepts it, a line each; empty where nothing did."""
    lines = changes(before, now)
    return "\n".join([*lines, f"To accept the change: {ACCEPT}"]) if lines else ""


def command(words: list[str]) -> None:
    """Says what changed; --write takes it over."""
    stored, now = json.loads(FILE.read_text()) if FILE.exists() else {}, counted()
    if "--json" in words:  # for the test, which runs this in a process of its own
        print(json.dumps({"key": key(), "counts": now}))
        return
    print("\n".join(changes(stored.get(key(), {}), now)) or f"nothing changed for {key()}")
    if "--write" in words:
        FILE.write_text(json.dumps({**stored, key(): now}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    command(sys.argv[1:])
