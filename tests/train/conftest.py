"""Makes the modules beside the tests importable: importlib mode adds no test folder to the path."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "convert")]
