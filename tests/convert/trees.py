"""Comparing nests of arrays leaf by leaf."""

from typing import Any

import numpy as np


def leaves(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {p: x for name, sub in tree.items() for p, x in leaves(sub, f"{path}/{name}").items()}


def assert_same(found: Any, wanted: Any) -> None:
    found, wanted = leaves(found), leaves(wanted)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
        assert found[path].dtype == value.dtype
