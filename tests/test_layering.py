"""Who may import whom. A violation is named with its line; sizes are printed, not judged."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mrm_jax"

# What each part may import of ours, besides itself. Order: lower parts first.
ALLOWED = {
    "options": set(),
    "registry": {"options"},
    "config": {"options", "registry"},
    "checks": {"options", "registry", "config"},
    "recipes": {"options", "registry", "config"},
    "arms": {"options", "config"},
    "command": {"options", "config", "checks"},
    "types": set(),
    "paths": {"options", "children"},
    "shell": {"paths"},
    "children": set(),
    "stop": set(),
    "rngs": {"types"},
    "sharding": {"registry", "config", "types"},
    "ops": {"registry", "config", "types"},
    "models": {"registry", "config", "types", "rngs", "ops"},
    "uda": {"registry", "config", "types", "rngs", "ops", "models"},
    "convert": {"registry", "config", "types", "paths"},
    "data": {"registry", "config", "types", "paths", "children"},
    "evaluation": {"config", "types", "rngs", "sharding", "ops", "models", "data", "paths", "stop"},
    "report": {"config", "types", "options", "data", "arms", "paths", "stop"},
    "benchmarks": {"config", "recipes", "data"},
    "train": {
        *("registry", "config", "options", "checks", "types", "rngs", "sharding", "ops"),
        *("models", "uda", "paths", "shell", "children", "stop"),
        *("data", "evaluation", "report", "convert", "recipes", "arms"),
    },
    "cli": {
        *("registry", "config", "options", "types", "rngs", "sharding", "ops", "models"),
        *("uda", "convert", "paths", "shell", "children", "stop"),
        *("data", "evaluation", "report", "train", "recipes", "arms", "command"),
    },
    "main": {"config", "options", "command", "cli", "paths", "children", "stop"},
}
# Packages that cost seconds or are optional: only inside the function that needs them.
LAZY = {"torch", "tensorflow", "matplotlib", "safetensors", "tensorflow_datasets"}
# Parts that must answer before jax loads, and parts that never need it.
NO_JAX = {
    "options",
    "registry",
    "paths",
    "shell",
    "children",
    "stop",
    "config",
    "checks",
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


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_needed(path):
    banned = LAZY | (JAX if part(path) in NO_JAX else set())
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name} when it is loaded"
        for line, name in imports_at_load(ast.parse(path.read_text()))
        if name.split(".")[0] in banned
    ]
    assert not wrong, "\n".join(wrong)


def test_sizes_are_reported(capsys):
    files = {p: len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    functions = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                functions[f"{path.relative_to(PACKAGE)}:{node.name}"] = length
    longest = sorted(files, key=files.__getitem__, reverse=True)[:5]
    with capsys.disabled():
        print(f"\n{len(files)} files, {sum(files.values())} lines; longest:")
        for path in longest:
            print(f"  {files[path]:4} {path.relative_to(PACKAGE)}")
        for name in sorted(functions, key=functions.__getitem__, reverse=True)[:5]:
            print(f"  {functions[name]:4} {name}()")
    assert files
