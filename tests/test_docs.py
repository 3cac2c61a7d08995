"""The pages that people read: every table is a table, every link leads somewhere, and every command
is one that the program takes. Nothing is trained: verbs are parsed and configs loaded, and launch
scripts print what they would run. What needs more stands in `ELSEWHERE` with the reason."""

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mrm_jax import command, main
from mrm_jax.config import Config
from mrm_jax.errors import UsageError
from mrm_jax.options import declared
from mrm_jax.recipes import KEYS, RECIPES
from mrm_jax.variants import DECODERS, ENCODERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "launch" / "README.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TABLES = MarkdownIt("commonmark").enable("table")

PLACEHOLDERS = {
    "FILE": "quickstart",
    "FILE[:RECIPE]": "quickstart",
    "YOUR_COPY.py": "folder",
    "my_config.py": "folder",
    "configs/quickstart.py:R": "quickstart:dacs",
    "--config.seed=S": "--config.seed=0",
    "--config.mesh.process_index=$i": "--config.mesh.process_index=0",
    "OTHER": "quickstart",
    "WORD": "ratio",
}
"""Words of a command that its reader replaces, with one that could stand there."""

ELSEWHERE = {
    "python -m venv": "makes an environment",
    "python3 -m venv": "the same",
    "source": "opens an environment",
    "pre-commit": "needs git's hooks",
    ".ci/run": "runs all tests in a new environment",
    "pytest": "runs tests; tests/test_readme.py collects one of them",
    "python -m pytest": "the same",
    "tensorboard": "needs a trace, and packages of its own",
    "gcloud": "needs an account",
    "docker": "needs docker; tests/launch reads the recipe",
    "launch/check_accelerator.sh": "times a device for minutes; tests/machine runs it small",
    "python tests/machine/counts.py": "compiles for minutes; tests/machine reads what it writes",
    "python -m mrm_jax.machine.parity": "compiles for minutes",
    "python docs/results/evidence/erased.py": "scores trained runs; its table is made below",
    "ssh-add": "needs a key",
}


def tokens(page: Path) -> list[Token]:
    return TABLES.parse(page.read_text())


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def cells(row: str) -> int:
    """How many cells a row of a table has: bars split also inside code, unless a backslash is
    before them (GitHub's rule)."""
    return len(re.split(r"(?<!\\)\|", row.strip().strip("|")))


@pytest.mark.parametrize("name", NAMES)
def test_every_table_renders_and_its_rows_have_as_many_cells_as_its_head(name):
    page = ROOT / name
    lines, found = page.read_text().splitlines(), set()
    for token in tokens(page):
        if token.type in ("table_open", "fence", "code_block") and token.map:
            found.update(range(*token.map))
        if token.type == "table_open" and token.map:
            rows = lines[token.map[0] : token.map[1]]
            wrong = [row for row in rows if row.strip() and cells(row) != cells(rows[0])]
            assert not wrong, f"{name}: not {cells(rows[0])} cells: {wrong}"
    bare = [line for i, line in enumerate(lines) if line.startswith("|") and i not in found]
    assert not bare, f"{name}: rows outside of any table: {bare}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    parsed = tokens(page)
    for token, heading in zip(parsed, parsed[1:], strict=False):
        if token.type == "heading_open":
            text = "".join(t.content for t in heading.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = sum(
                re.fullmatch(rf"{re.escape(slug)}(-\d+)?", old) is not None for old in found
            )
            found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, but for addresses on the web."""
    places = [str(t.attrGet("href") or t.attrGet("src") or "") for t in inline(page)]
    return [place for place in places if place and not place.startswith(("http:", "https:"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(name):
    dead = []
    for link in links(ROOT / name):
        path, _, anchor = link.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(link)
    assert not dead, f"{name}: {dead}"


def test_the_readme_leads_to_every_page():
    places = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    pages = {page for page in PAGES if page.name != "CHANGELOG.md"} - {ROOT / "README.md"}
    assert pages <= places, pages - places


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks of code, and those that stand in its text as `mrm-jax ...`,
    `python -m mrm_jax...` and `--config ...`."""
    found = []
    for token in tokens(page):
        if token.type == "code_block" or (
            token.type == "fence" and token.info in ("console", "bash")
        ):
            text = re.sub(r"\\\n\s*", "", token.content)
            found += [line.strip() for line in text.splitlines() if line.strip()]
    starts = ("mrm-jax ", "python -m mrm_jax", "--config ", "--config.", "pip install ")
    found += [
        t.content for t in inline(page) if t.type == "code_inline" if t.content.startswith(starts)
    ]
    return found


def pieces(line: str) -> list[list[str]]:
    """The words of each command of a line, without what prompts, comments and redirections add."""
    line = re.sub(r"for i in 0 1; do (.*) & done; wait", r"\1", line)
    line = re.sub(r"\[(--against torch)\]", r"\1", line)
    words, found = shlex.split(line, comments=True), [[]]
    for word in words:
        if word in ("&&", "&", ";"):
            found.append([])
        elif word in (">", ">>", "|"):
            break
        else:
            word = re.sub(r"^FILE(?=:\w)", "quickstart", word).replace(
                "encoder=NAME", "encoder=mit_b0"
            )
            found[-1].append(PLACEHOLDERS.get(word, word))
    return [each for each in found if each]


def taken(words: list[str], monkeypatch) -> None:
    """Parses a command of ours and loads its config, without running its verb unless it only
    prints. Raises UsageError for a flag, an option or a config that there is not."""
    verb = words[0] if words[0] in main.VERBS else "train"
    if verb == "config" and "--diff" in words and words[-1].startswith("runs/"):
        words = words[:-2]  # a run, which is not there
    if verb not in ("config", "options"):
        module = importlib.import_module(f"mrm_jax.cli.{verb}")
        monkeypatch.setattr(module, "run", lambda arguments, config: 0)
    assert main.run(words) == 0
    config_words = command.split_config_flags(words)[0]
    if verb == "doctor" and config_words:  # which reads its config itself
        command.load_values(config_words)


def completed(words: list[str]) -> list[str]:
    """A part of a command, from `--config` on, as one that trains: the text around it says with
    what."""
    file = [] if words[0] == "--config" else ["--config", "gta_to_cityscapes"]
    weights = "--config.model.encoder.weights=any"
    return [*file, weights, *words, "--workdir", "runs/any"]


def rest_of(words: list[str]) -> list[str] | None:
    """What follows `mrm-jax` or its long form; None for another command."""
    if words[0] == "mrm-jax":
        return words[1:]
    return words[3:] if words[:3] == ["python", "-m", "mrm_jax.main"] else None


def launched(words: list[str]) -> list[str] | None:
    """A launch script's command with --dry_run; None for another command."""
    if words[0] == "sbatch":
        script = words.index("launch/slurm.sbatch")
        return ["bash", words[script], "--dry_run", *words[script + 1 :]]
    script = 1 if words[0] == "bash" else 0
    if words[script] in ("launch/tpu_vm.sh", "launch/local_processes.sh", "launch/slurm.sbatch"):
        extra = [] if "--dry_run" in words else ["--dry_run"]
        return ["bash", words[script], *extra, *words[script + 1 :]]
    return None


EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)


def is_form(words: list[str]) -> bool:
    """Whether these say how commands are written, or only name a verb."""
    forms = ("VERB", "[VERB]", "...", "--config.a.b=c")
    named = words[:1] == ["mrm-jax"] and len(words) == 2 and words[1] in main.VERBS
    return named or any(word in forms or word.endswith((".", ":")) for word in words)


def refusal(words: list[str], monkeypatch) -> str:
    """Why a command is none; empty where it is one."""
    text = " ".join(words)
    if (rest := rest_of(words)) is not None or words[0].startswith("--config"):
        if not rest and rest is not None or is_form(words):
            return ""
        if len(words) == 1 and words[0].startswith("--config.") and "=" not in words[0]:
            known = words[0].removeprefix("--config.") in declared(Config)
            return "" if known else f"{text}: no option"
        try:
            taken(completed(words) if rest is None else rest, monkeypatch)
        except UsageError as error:
            return f"{text}: {error}"
    elif (dry := launched(words)) is not None:
        done = subprocess.run(dry, capture_output=True, text=True, cwd=ROOT)
        return f"{text}: {done.stdout}{done.stderr}" if done.returncode else ""
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"(?:\.|mrm-jax)\[([\w,]+)\]", text)
        unknown = {e for found in extras for e in found.split(",")} - EXTRAS
        return f"{text}: {unknown}" if unknown else ""
    elif not text.startswith(tuple(ELSEWHERE)):
        return f"{text}: neither ours nor in ELSEWHERE"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_taken_or_its_reason_not_to_run_it_is_listed(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = dict.fromkeys(commands(ROOT / name))
    refused = [refusal(words, monkeypatch) for line in lines for words in pieces(line)]
    assert not any(refused), "\n".join(filter(None, refused))


def test_every_block_of_python_is_python():
    blocks = [t for page in PAGES for t in tokens(page) if t.info == "python"]
    assert blocks
    for block in blocks:
        ast.parse(block.content)


def test_the_page_on_use_has_every_verb_recipe_key_decoder_and_family_of_encoders():
    text = (ROOT / "docs" / "use.md").read_text()
    families = {re.sub(r"(_?[bsSlg]?\d+(_reg|_7x7)?)$", "", name) for name in ENCODERS}
    wanted = [
        *(f"`{name}`" for name in (*main.VERBS, *RECIPES, *DECODERS)),
        *(f"`{key}=" for key in KEYS),
    ]
    assert not [name for name in (*wanted, *families) if name not in text]


def test_every_citation_of_the_page_is_an_entry_there_and_in_the_cff():
    page = (ROOT / "docs" / "citations.md").read_text()
    cff = (ROOT / "CITATION.cff").read_text()
    entries = re.findall(r"@(?:article|inproceedings)\{(\w+),", page)
    assert re.findall(r"\| `(\w+)` \|", page) == entries
    assert re.findall(r"note = \{(arXiv:[\d.]+)\}", page) == re.findall(r'"(arXiv:[\d.]+)"', cff)
    assert len(entries) == len(set(entries)) >= 12


def test_the_table_of_erased_evidence_is_made_of_its_numbers():
    evidence = ROOT / "docs" / "results" / "evidence"
    erased = runpy.run_path(str(evidence / "erased.py"))
    found = sorted(evidence.glob("*/erased.json"))
    assert found
    for path in found:
        made = erased["table"](json.loads(path.read_text()))
        assert path.with_suffix(".md").read_text() == made
