"""A spreadsheet shows the cells of our tables and computes none of them."""

import pytest

from mrm_jax.report.table import cells


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])  # noqa: RUF001
def test_a_text_that_would_be_a_formula_begins_with_an_apostrophe(start):
    text = f"{start}HYPERLINK(1).png"
    assert cells([text, f"a{text}", "", -1, -0.5]) == [f"'{text}", f"a{text}", "", -1, -0.5]
