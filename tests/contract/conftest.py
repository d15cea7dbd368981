"""The mount that the tests of a module share."""

from collections.abc import Iterator

import pytest

from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, mount_server
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    """Mount a server in write mode, with each binding."""
    folder = tmp_path_factory.mktemp("contract")
    with mount_server(folder, server.tcp_url(), "--binding", request.param, write=True) as mount:
        yield mount
