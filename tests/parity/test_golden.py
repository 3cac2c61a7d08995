"""The folder of reference outputs itself: found, complete, and every family of it taken care of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden import COMMITTED, FAMILIES, cases, family, folder, load


def _unknown() -> list[str]:
    return [name for name in cases("") if family(name) is None]


@pytest.mark.parametrize("name", _unknown())
def test_a_case_that_no_module_compares_is_told_by_name(name: str) -> None:
    assert folder() != COMMITTED, f"no test module compares {name}"
    pytest.skip(f"nothing here is what {name} compares with")


def test_every_family_that_a_module_compares_is_in_the_committed_subset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MRM_GOLDEN_DIR", raising=False)
    missing = {prefix for prefix in FAMILIES if not cases(prefix)}
    # A megabyte and more a case: they are compared where MRM_GOLDEN_DIR has them.
    assert missing <= {"rebuilder_single", "hrda_forward", "traj"}


def test_every_case_has_its_sidecar_and_something_to_compare() -> None:
    for name in cases(""):
        case = load(name)
        assert case.groups["out"] or case.groups.get("out64"), name
        assert all(np.asarray(x).dtype != object for g in case.groups.values() for x in g.values())


def test_a_named_folder_that_is_missing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MRM_GOLDEN_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        folder()


def test_the_committed_subset_stays_below_twelve_megabytes() -> None:
    size = sum(path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file())
    assert size <= 12_000_000
