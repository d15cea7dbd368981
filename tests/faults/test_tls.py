"""TLS to a real server with a certificate of the test: large values both ways, and untrusted certificates."""

import contextlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import UnavailableError
from tests.support.redis_server import RedisServer, find_free_port

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with a self-signed certificate for localhost."""
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return directory


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    """Start a server with that certificate, and yield its TLS port."""
    port = find_free_port()
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    arguments += ["--tls-cert-file", f"{certificate}/cert.pem", "--tls-key-file", f"{certificate}/key.pem"]
    arguments += ["--tls-ca-cert-file", f"{certificate}/cert.pem"]
    with RedisServer(arguments=arguments):
        yield port


def test_trusted(tls_port: int, certificate: Path) -> None:
    """With the authority given, everything works as without TLS: batches, streams both ways, push messages."""
    address = Address.parse(f"rediss://localhost:{tls_port}?ssl_ca_certs={certificate}/cert.pem")
    with contextlib.closing(RedisClient(address, writable=True)) as server:
        with server.write_channel() as writer:
            writer.send_streamed(["HSET", "h", "f"], 8 * MIB, [b"x" * MIB] * 8)
            assert writer.receive() == 1
        file = io.BytesIO()
        assert server.download(file, "HGET", "h", "f") == 8 * MIB
        assert file.getvalue() == b"x" * 8 * MIB
        assert server.execute_many([("HSTRLEN", "h", "f")] * 3000) == [8 * MIB] * 3000
        with server.dedicated_channel(resp3=True) as channel:
            channel.send([("SUBSCRIBE", "__redis__:invalidate"), ("CLIENT", "TRACKING", "ON", "BCAST")])
            assert channel.receive() == b"OK"
            assert channel.receive_push(2) is not None
            assert channel.receive_push(0.05) is None
            with server.write_channel() as writer:
                writer.execute([("SET", "k", "v")])
            assert channel.receive_push(2) == [b"invalidate", [b"k"]]


def test_not_trusted(tls_port: int) -> None:
    """An unknown authority is refused, naming the option that helps; ssl_cert_reqs=none accepts it."""
    limits = Limits(timeout=3)
    with pytest.raises(UnavailableError, match="certificate"):
        RedisClient(Address.parse(f"rediss://localhost:{tls_port}"), limits).connect()
    loose = Address.parse(f"rediss://localhost:{tls_port}?ssl_cert_reqs=none&ssl_check_hostname=false")
    with contextlib.closing(RedisClient(loose, limits)) as server:
        assert server.execute("PING") == b"PONG"


def test_plain_to_a_tls_port(tls_port: int) -> None:
    """redis:// to a TLS port fails in time, with a hint."""
    with pytest.raises(UnavailableError):
        RedisClient(Address.from_host_port("localhost", tls_port), Limits(timeout=2)).connect()
