"""Who may import whom, and that docs/development.md says so. A violation is named with its line."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mrm_jax"
DEVELOPMENT = (PACKAGE.parent / "docs" / "development.md").read_text()

# What each part may import of ours, besides itself. Order: lower parts first, and none imports one
# that stands below it here.
GROUND = {"errors", "children", "stop", "paths", "shell", "backend", "terminal"}
CONFIG = {"errors", "options", "registry", "config"}
NETWORK = {*CONFIG, "label_ids", "types", "rngs", "ops", "models"}
ALLOWED = {
    "errors": set(),
    "children": set(),
    "stop": set(),
    "paths": {"errors", "children"},
    "shell": {"paths"},
    "backend": {"errors"},
    "terminal": set(),
    "allocator": set(),
    "options": {"errors"},
    "registry": {"errors", "options"},
    "config": {"errors", "options", "registry"},
    "checks": CONFIG,
    "variants": CONFIG,
    "recipes": {*CONFIG, "variants"},
    "arms": CONFIG,
    "command": {*CONFIG, "checks"},
    "label_ids": set(),
    "types": set(),
    "rngs": {"errors", "types"},
    "ops": {"registry", "label_ids", "types"},
    "models": {*CONFIG, "types", "rngs", "ops"},
    "sharding": {*CONFIG, "types"},
    "uda": {*NETWORK, "sharding"},
    "convert": {*CONFIG, "types", "paths"},
    "data": {*CONFIG, "label_ids", "types", "paths", "children"},
    "hosts": {*GROUND, *CONFIG},
    "evaluation": {*NETWORK, "sharding", "data", "paths", "stop"},
    "report": {*GROUND, *CONFIG, "types", "data", "arms"},
    "benchmarks": {"config", "recipes", "data"},
    "runs": {*GROUND, *NETWORK, "checks", "variants", "convert", "hosts"},
    "opening": {*GROUND, *NETWORK, "evaluation", "runs"},
    "export": {*GROUND, *NETWORK, "checks", "convert", "data", "evaluation"},
    "train": {
        *(*GROUND, *NETWORK, "allocator", "sharding", "uda", "arms"),
        *("data", "hosts", "evaluation", "report", "runs"),
    },
    "machine": {
        *(*GROUND, *NETWORK, "allocator", "sharding", "recipes"),
        *("uda", "data", "hosts", "evaluation", "train"),
    },
    "cli": {
        *(*GROUND, *NETWORK, "allocator", "sharding", "arms", "checks", "command", "convert"),
        *("data", "hosts", "evaluation", "report", "runs", "opening", "export"),
        *("train", "machine"),
    },
    "main": {*GROUND, "options", "config", "command", "cli"},
}
# What looks at a trained network never enters the room where networks are trained.
UNTRAINED = (*("evaluate", "predict", "submit", "convert", "export", "report", "check", "prepare"),)
# Packages that cost seconds or are optional: only inside the function that needs them.
LAZY = {
    *("torch", "tensorflow", "matplotlib", "safetensors", "tensorflow_datasets"),
    *("huggingface_hub", "jax2onnx", "onnxruntime", "flatbuffers", "transformers", "wandb"),
}
# What `bench --against torch` loads in a process of its own, and nothing else.
TORCH = "machine/torch_peer/"
# Parts that must answer before jax loads, and parts that never need it.
NO_JAX = {
    "errors",
    "label_ids",
    "hosts",
    "options",
    "registry",
    "paths",
    "shell",
    "backend",
    "terminal",
    "children",
    "stop",
    "allocator",
    "config",
    "checks",
    "variants",
    "recipes",
    "arms",
    "command",
    "benchmarks",
    "main",
    "cli",
    "convert",
    "data",
    "report",
}
JAX = {"jax", "flax", "optax", "orbax"}


def part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module == "mrm_jax"
            names = [f"mrm_jax.{n.name}" for n in node.names] if ours else [node.module]
            found += [(node.lineno, name) for name in names]
    return found


def imports_at_load(tree: ast.Module) -> list[tuple[int, str]]:
    """Imports outside functions and outside `if TYPE_CHECKING`."""
    body = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return imports(ast.Module(body, []))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_the_parts_below_its_own(path):
    wrong = []
    for line, name in imports(ast.parse(path.read_text())):
        if not name.startswith("mrm_jax."):
            continue
        other = name.split(".")[1]
        if other != part(path) and other not in ALLOWED[part(path)] and not other.startswith("__"):
            wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_but_its_own_files_imports_the_networks_of_pytorch():
    wrong = [
        str(path)
        for path in modules()
        if not path.relative_to(PACKAGE).as_posix().startswith(TORCH)
        and re.search(r"^\s*(from|import) mrm_jax\.machine\.torch_peer", path.read_text(), re.M)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("verb", UNTRAINED)
def test_a_verb_that_trains_nothing_does_without_the_training_room(verb):
    names = [name for _, name in imports(ast.parse((PACKAGE / f"cli/{verb}.py").read_text()))]
    assert not [name for name in names if name.startswith(("mrm_jax.train", "mrm_jax.machine"))]


def test_no_part_may_import_one_that_stands_above_it():
    order = list(ALLOWED)
    assert all(order.index(low) < order.index(part) for part in order for low in ALLOWED[part])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_needed(path):
    banned = LAZY | (JAX if part(path) in NO_JAX else set())
    if path.relative_to(PACKAGE).as_posix().startswith(TORCH):
        banned = banned - {"torch"} | JAX
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name} when it is loaded"
        for line, name in imports_at_load(ast.parse(path.read_text()))
        if name.split(".")[0] in banned
    ]
    assert not wrong, "\n".join(wrong)


def test_every_file_and_folder_that_the_page_on_development_names_exists():
    named = re.findall(r"`([.\w/-]+(?:\.\w+|/))`", DEVELOPMENT) + re.findall(
        r"tests/[\w/]+\.py", DEVELOPMENT
    )
    paths = [name for name in named if "/" in name or name.endswith(".py")]
    assert len(paths) > 60
    missing = [p for p in paths if not ((PACKAGE.parent / p).exists() or (PACKAGE / p).exists())]
    assert not missing


def test_the_rooms_on_that_page_are_those_of_the_package_from_the_ground_up():
    table = DEVELOPMENT.split("## Rooms")[1].split("## The step")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    rooms = [
        re.sub(r"\.py$|/$", "", name) for cell in cells for name in re.findall("`(.*?)`", cell)
    ]
    assert sorted(rooms) == sorted(ALLOWED)
    below = {room: set(rooms[:place]) for place, room in enumerate(rooms)}
    assert all(ALLOWED[room] <= below[room] for room in rooms)
