"""Whatever JSON lies in a prepared set, it opens as it was prepared or is one line."""

import copy
import json
import shutil

import downloads
import pytest
from test_prepare import made

from mrm_jax.data.prepared import manifest
from mrm_jax.errors import UsageError

VALUES = (
    *(None, True, False, -1, 0.5, 10**13, 10**400, 1e300, "", "x", "\ud800"),
    *([], [None], [[]], {}, {"a": None}, {"0": -1}),
)
OPTIONAL = [(key,) for key in ("files", "resize", "size", "index", "places")]
"""What may be null: sets that were prepared before do not have it, or it says so."""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A set without the digests of newer ones, which would tell before any value is looked at."""
    root = tmp_path_factory.mktemp("set")
    downloads.gta(root / "raw", count=2, size=(16, 24))
    made("gta", root / "raw", root / "to", resize=(24, 16), shards=2)
    values = json.loads((root / "to/manifest.json").read_text())
    (root / "to/manifest.json").write_text(json.dumps(values | {"files": {}}))
    return root / "to"


def places(value, path=()):
    """The path of every value of a document, the document's own too."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(document, path, value):
    if not path:
        return value
    document = copy.deepcopy(document)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


def load(folder):
    found = manifest.read_manifest(folder, field="config.data.source.path")
    return found, manifest.load_known(folder, found, "train", field="config.data.source.path")


@pytest.mark.parametrize("name", ["manifest.json", "pictures-train.json"])
def test_a_value_of_another_kind_at_any_place_is_one_line_that_names_it(original, name, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for other in ("manifest.json", "pictures-train.json"):
        shutil.copy(original / other, folder)
    document = json.loads((original / name).read_text())
    tried = 0
    for path in places(document):
        before = document
        for key in path:
            before = before[key]
        for value in VALUES:
            (folder / name).write_text(json.dumps(replaced(document, path, value)))
            tried += 1
            fewer = value is None and path[-1:] in OPTIONAL
            wrong = type(value) is not type(before) and not fewer
            wrong |= value in (-1, 10**400, "\ud800")
            try:
                load(folder)
            except UsageError as error:
                text = str(error)
                assert f"{name} " in text or "format" in text
                assert "\n" not in text
                assert len(text) < 500
            else:
                assert not wrong, (path, value)
    assert tried > 300


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"a":' * 100_000, "nul", "\x00", "9" * 5000])
@pytest.mark.parametrize("name", ["manifest.json", "pictures-train.json"])
def test_what_is_no_json_is_one_line(original, name, text, tmp_path):
    for other in ("manifest.json", "pictures-train.json"):
        shutil.copy(original / other, tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{name} (cannot be read|has format).*the set again"):
        load(tmp_path)
