"""Fixtures of the tests of the kernel's protocol; the other modules define a `mount` of their own."""

from collections.abc import Iterator

import pytest

from tests.support.bindings import BINDINGS
from tests.support.memory_mount import MemoryMount


@pytest.fixture(scope="module", params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    """Return the name of a binding."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(binding: str) -> Iterator[MemoryMount]:
    """Mount for the tests that leave the mount as it was, apart from files of their own."""
    with MemoryMount(binding, tree={"small": 2000, "large": 100_000}) as mounted:
        yield mounted


@pytest.fixture
def mount(shared: MemoryMount) -> MemoryMount:
    """Return the shared mount, its counts of requests reset."""
    shared.send_request("counts")
    return shared
