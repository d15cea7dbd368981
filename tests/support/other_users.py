"""Whether tests can run code of this checkout as another user."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.forkserver import ROOT


def _is_open_to_others() -> bool:
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", "import redisfuse"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 0


needs_open_checkout = pytest.mark.skipif(
    not _is_open_to_others(),
    reason="runs this checkout as another user: needs root, and folders that others can search",
)
