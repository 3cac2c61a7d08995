"""What every test runs under: two fake CPU devices, one compilation cache, no silent promotion."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `refusals`

# Before jax starts. Two devices, so that sharding is exercised by default; the cache lives as long
# as the machine's temporary folder and is shared with the processes that e2e tests start.
CACHE = Path(tempfile.gettempdir()) / f"mrm_jax_test_cache_{os.getuid()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("MPLBACKEND", "agg")
