"""Makes modules beside these tests importable, and those of folders that runs come from."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("runs", "train", "data", "data/prepared")]
