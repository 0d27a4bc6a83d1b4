"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The networks of the tests are tiny: a second thread only waits for the first. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and nothing written into the tree.
settings.register_profile("bitswitch", derandomize=True, database=None, deadline=None)
settings.load_profile("bitswitch")
