"""Settings for all tests."""

from __future__ import annotations

import os

# The networks of the tests are tiny: a second thread only waits for the first. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
