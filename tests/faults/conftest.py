"""Fixtures of the tests that make a mount's surroundings fail."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mounts import Mount
from tests.support.nursery import Nursery

TIMEOUT = 1.0  # seconds, of the mounts

MakeMount = Callable[..., Mount]


@pytest.fixture
def make_mount(nursery: Nursery, tmp_path: Path) -> Iterator[MakeMount]:
    """Mounts a URL in write mode, with a short time-out; afterwards nothing is left mounted."""
    with ExitStack() as stack:

        def make(url: str, *options: str, folder: Path = tmp_path, **others: bool) -> Mount:
            mounted = nursery.mounted(folder, url, "--timeout", str(TIMEOUT), *options, **others)
            return stack.enter_context(mounted)

        yield make
