"""Names that come from elsewhere stay below a folder: what `paths.below` refuses, and a search of
the package for joins that do not ask it."""

import ast
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mrm_jax import paths
from mrm_jax.errors import UsageError
from mrm_jax.paths import below, replaced, result_name, write_bytes
from mrm_jax.shell import pasteable

PACKAGE = Path(__file__).parents[1] / "mrm_jax"
ODD = os.fsdecode(b"caf\xe9")
"""A name that is no UTF-8, as Python gives it."""

# Joins whose right side is made here: file of the package -> what stands right of the "/" (or in
# joinpath, with_name, Path and os.path.join). A name that a file, an archive, a listing or a record
# gives belongs into `paths.below`, not into this list.
OURS = {
    "cli/ablate.py": {"f'seed{seed}'", "path"},  # numbers of --seeds; a folder made of them
    "cli/bench.py": {"folder", "arguments.json"},  # a temporary one; --json
    "cli/report.py": {"write_report(mirror.local).name"},  # a constant there
    "cli/config.py": {"name"},  # --diff
    "command.py": {"name", "__file__", "f'{name}.py' if bare else name"},  # --config
    "convert/named.py": {"text", "str(installed.locate_file(''))"},  # of --from; pip's folder
    "convert/hub.py": {"found"},  # in the cache, of a name that `refusal` let pass
    "data/prepared/check.py": {"name"},  # two constants
    "data/class_statistics.py": {
        *("home", "common", "domain.path or ''"),  # the user's folders; a digest
        "f'class_statistics-{_hash([which, table])[:16]}.json'",
    },
    "data/identity.py": {"domain.path or ''"},  # the user's folder
    "data/check.py": {"as_path(finding.fixed_part(source.labels))"},  # the user's config
    "data/finding.py": {"as_path(fixed_part(folder))", "as_path(folder)"},  # the user's config
    "data/prepared/shards.py": {  # a data set's name in our table, a split in it, a number
        *("job.file", "f'.{job.file}.json'", "f'.{job.file}.{os.getpid()}'"),
    },
    "data/prepared/records.py": {"file"},  # two constants
    "data/prepared/prepare.py": {"name"},  # names of splits in our table, and constants
    "data/prepared/reading.py": {"file", "domain.path or ''"},  # of `below`; the user's folder
    "data/sources.py": {"as_path(domain.listing)", "domain.path or ''"},  # the user's config
    "machine/against.py": {"'/proc/self/status'", "'/proc/self/clear_refs'", "'/proc/cpuinfo'"},
    "machine/throughput.py": {  # drawn here, into a temporary folder
        *("f'images/{number:05d}.png'", "f'labels/{number:05d}.png'"),
        *("f'leftImg8bit/{stem}_leftImg8bit.png'", "f'gtFine/{stem}_gtFine_labelIds.png'"),
        *("name", "f'{case.data_set}_{case.box[0]}_{codec}'"),
    },
    "data/tree.py": {"name"},  # what os.walk finds in a folder
    "data/prepared/verified.py": {  # the user's folder; a digest
        *("home", "hashlib.sha256(repr(facts).encode('utf-8', 'replace')).hexdigest()"),
    },
    "evaluation/pictures.py": {"p", "word"},  # what glob finds; of the command line
    "paths.py": {
        *("as_path(str(name))", "as_path(os.fspath(text))"),  # `below` and `located` themselves
        *("text", "folder", "f'.new-{uuid.uuid4().hex}'"),
    },
    "report/ablation.py": {"f'{NAME}.{ending}'"},  # four constants
    "report/panels.py": {"path"},  # the caller's
    "report/html.py": {"_odd_file(found)"},  # one of four constants
    "report/record.py": {"workdir", "name"},  # the caller's; two constants
    "runs/checkpoint.py": {"f'.{path.name}.{os.getpid()}'", "name"},  # beside --to; two constants
    "runs/items.py": {"item"},  # of a state
    "machine/parity.py": {"__file__"},
    "machine/suite.py": {"mrm_jax.__file__"},
    "machine/doctor.py": {"f'.doctor-{uuid.uuid4().hex}'"},
    "cli/evaluate.py": {"f'confusion_{name}.png'"},  # student or teacher
    "train/hooks.py": {"'/proc/self/statm'"},
    "train/jobs.py": {"f'worker{k}.log'", "str(self.config.train.steps)"},
    "runs/mirror.py": {
        *("f'.probe-{uuid.uuid4().hex}'", "name"),  # what lies in the run's folder here
        "own",  # a constant of `runs.workdir`
        "tempfile.mkdtemp(prefix='mrm_jax_')",
    },
    "runs/saved.py": {  # beside a folder that is there; constants, and items of a state
        *("f'damaged_{number}_step_{folder.name}'", "f'{_DELETED}{folder.name}'", "name", "item"),
    },
    "train/trace.py": {"f'host-{group.host_index()}'", "self._folder.name"},  # the same
    "train/kept.py": {"named", "__file__", "'/proc/cpuinfo'"},  # the user's folder, of JAX's cache
    "train/sentinel.py": {"f'step_{step}.npz'"},
    "runs/trackers.py": {"run.dir", "place.relative_to(workdir)"},  # made by wandb, by our id
    "runs/workdir.py": {
        *("sys.argv[0]", "mrm_jax.__file__", "f'{what}_{step:07d}.png'"),  # a word of ours
    },
}
NUMBERS = re.compile(
    r"(?:str\()?(?:int\()?(?:steps?|newest|top|which|(?:steps|before)\[-1\])\)*|f'[\w]*\{step:07d\}\.png'"
)
"""Steps, of which no text is made but digits."""
JOINS = {"joinpath", "with_name", "with_stem"}
TEXT_TO_PATH = {"Path", "located", "local", "os.path.join"}
NAMES = {"name", "names", "file", "stem", "member", "filename", "split", "key", "path"}


def identifier(node: ast.AST) -> str:
    """The last part of a name or attribute, without a leading underscore."""
    found = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return found.lstrip("_")


def path_names(trees: list[ast.Module]) -> set[str]:
    """What is called a path somewhere: annotated as one, assigned one, or returning one."""
    found = {"parent", "local", "remote", "directory"}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.arg | ast.AnnAssign | ast.FunctionDef):
            note = node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            if note is not None and re.fullmatch(r"Path( \| \w+)*", ast.unparse(note)):
                name = node.target if isinstance(node, ast.AnnAssign) else node
                found.add(identifier(name) or getattr(name, "arg", getattr(name, "name", "")))
    return found


def is_path(node: ast.AST, known: set[str]) -> bool:
    if isinstance(node, ast.BinOp):
        text = isinstance(node.right, ast.JoinedStr) or (
            isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
        )
        return isinstance(node.op, ast.Div) and (text or is_path(node.left, known))
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in TEXT_TO_PATH or identifier(node.func) in {
            *known,
            *JOINS,
            *("below", "resolve", "expanduser", "absolute", "home", "mkdtemp"),
        }
    return identifier(node) in known


def made_here(node: ast.AST) -> bool:
    """A literal, a constant of ours, or an answer of `below`."""
    if isinstance(node, ast.Constant):
        return not (isinstance(node.value, str) and paths.refusal(node.value.removeprefix(".")))
    asked = isinstance(node, ast.Call) and ast.unparse(node.func) in ("below", "paths.below")
    return asked or identifier(node).isupper() or bool(NUMBERS.fullmatch(ast.unparse(node)))


def joins(tree: ast.AST, known: set[str]) -> list[tuple[int, str]]:
    """(line, right side) of every join of a path with what is not made here."""
    found = []
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            hint = isinstance(node.right, ast.JoinedStr) or identifier(node.right) in NAMES
            if hint or is_path(node.left, known):
                parts = [node.right]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in TEXT_TO_PATH:
            first = 1 if node.args and is_path(node.args[0], known) else 0
            parts = [] if len(node.args) == first == 1 else list(node.args[first:])
        elif isinstance(node, ast.Call) and identifier(node.func) in JOINS:
            parts = list(node.args)
        found += [(part.lineno, ast.unparse(part)) for part in parts if not made_here(part)]
    return found


TREES = {  # without the parts that compute with arrays alone and divide numbers
    name: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if (name := path.relative_to(PACKAGE).as_posix()).split("/")[0] not in ("ops", "models", "uda")
}
KNOWN = path_names(list(TREES.values()))


def test_every_join_of_a_name_from_elsewhere_asks_below():
    wrong = [
        f"mrm_jax/{file}:{line} joins {right}: use paths.below, or list it in OURS"
        for file, tree in TREES.items()
        for line, right in joins(tree, KNOWN)
        if right not in OURS.get(file, ())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "folder / name",
        "folder / shard.file",
        "self._folder / facts['file']",
        "(located(text) / 'a') / row[0]",
        "thing / f'{name}.png'",
        "folder.joinpath(*parts)",
        "path.with_name(name)",
        "Path(folder, name)",
        "Path(facts['name'])",
        "os.path.join(folder, name)",
        "folder / '../x'",
    ],
)
def test_the_search_finds_a_forgotten_join(line):
    assert joins(ast.parse(line), KNOWN)


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../x", "/tmp/x", "C:/x", "c:x", "..\\x", "a\\b", "..", "."),
        *("", "a//b", "a/./b", "a/", "./a", "a\0b", "a\nb", "a\x1b[1m", "a\x7f", "\ud800"),
        *("gs://b/x", "x" * 256, None, 3, ["a"]),
    ],
)
def test_a_name_that_is_none_below_a_folder_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(UsageError, match="a file of that name is refused") as caught:
        below(tmp_path, name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a", "a/b.png", "..a", "a..", "~", "-rf", "é ü", ODD, "%2e%2e", "ab:c"]
)
def test_a_plain_name_lies_where_it_says(tmp_path, name):
    assert below(tmp_path, name) == tmp_path / name


def test_a_link_that_leads_out_is_no_folder_of_ours(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "to/inside").mkdir(parents=True)
    (tmp_path / "to/out").symlink_to(tmp_path / "home")
    (tmp_path / "to/in").symlink_to(tmp_path / "to/inside")
    (tmp_path / "to/loop").symlink_to(tmp_path / "to/loop")
    (tmp_path / "same").symlink_to(tmp_path / "to")
    for name in ("out/x", "out/deep/x", "loop/x", "in/../../x"):
        with pytest.raises(UsageError, match="is refused"):
            below(tmp_path / "to", name)
    assert below(tmp_path / "to", "in/x") == tmp_path / "to/in/x"
    assert below(tmp_path / "same", "inside/x") == tmp_path / "same/inside/x"


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    target, link = tmp_path / "precious", tmp_path / "to" / "x.png"
    target.write_bytes(b"mine")
    link.parent.mkdir()
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"mine", b"new", False)
    with suppress(ZeroDivisionError), replaced(link) as new:
        new.write_bytes(b"half")
        raise ZeroDivisionError
    assert link.read_bytes() == b"new"
    assert [path.name for path in link.parent.iterdir()] == ["x.png"]
    write_bytes(link.with_name("y" * 255), b"new")  # a longest name
    mode = link.stat().st_mode & 0o777
    (tmp_path / "usual").write_bytes(b"")
    assert mode == (tmp_path / "usual").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *(("town/a.b", "town/a.b"), ("é", "é"), ("100%", "100%"), ("../x", "../x")),
        *((ODD, "caf%E9"), ("a\nb", "a%0Ab"), ("a\\b", "a%5Cb"), ("C:x", "C%3Ax")),
        *(("\ud800", "%ED%A0%80"), ("\0", "%00")),
    ],
)
def test_results_of_an_odd_name_get_a_plain_one(name, plain):
    assert result_name(name) == plain


def test_a_name_that_is_too_long_is_cut_between_letters_and_stays_its_own():
    long = [f"{'ü' * 124}{end}" for end in ("1234567", "1234568")]
    cut = [result_name(f"town/{name}", spare=12) for name in long]
    assert all(paths.refusal(f"{name}_overlay.png") is None for name in cut)
    assert len(set(cut)) == 2
    assert all(name.startswith(f"town/{'ü' * 114}") for name in cut)


def test_a_shown_command_means_the_words_that_were_meant():
    words = [
        "a b",
        "x'; touch F; '",
        ODD,
        "a\nb'\\c",
        "é",
        "",
        "$HOME",
        "`id`",
        "!x",
        "~",
        "\x1b[1m3",
    ]
    shell = ["bash", "-c", f"printf '%s\\0' {pasteable(words)}"]
    said = subprocess.run(shell, capture_output=True, check=True).stdout
    assert said == b"".join(os.fsencode(word) + b"\0" for word in words)
    assert "\n" not in pasteable(words)
