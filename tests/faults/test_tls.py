"""TLS to a real server with a certificate of the test: large values both ways, and errors that name their cause."""

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


def tls_arguments(port: int, certificate: Path) -> list[str]:
    """Return the arguments of a server with that certificate."""
    files = ["--tls-cert-file", f"{certificate}/cert.pem", "--tls-key-file", f"{certificate}/key.pem"]
    return ["--tls-port", str(port), *files, "--tls-ca-cert-file", f"{certificate}/cert.pem"]


def connect(url: str, limits: Limits | None = None) -> str:
    """Return the error of connecting; empty if it succeeded."""
    with contextlib.closing(RedisClient(Address.parse(url), limits or Limits(timeout=5))) as client:
        try:
            client.connect()
        except UnavailableError as error:
            return str(error)
    return ""


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    """Start a server with that certificate, and yield its TLS port."""
    port = find_free_port()
    with RedisServer(arguments=[*tls_arguments(port, certificate), "--tls-auth-clients", "no"]):
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
    assert "self-signed certificate (see --tls-ca)" in connect(f"rediss://localhost:{tls_port}", limits)
    loose = Address.parse(f"rediss://localhost:{tls_port}?ssl_cert_reqs=none&ssl_check_hostname=false")
    with contextlib.closing(RedisClient(loose, limits)) as server:
        assert server.execute("PING") == b"PONG"


def test_plain_to_a_tls_port(tls_port: int) -> None:
    """redis:// to a TLS port fails in time, with a hint, also if a password is sent first."""
    for userinfo in ("", ":s3cret@"):
        message = connect(f"redis://{userinfo}localhost:{tls_port}")
        assert f"localhost:{tls_port}" in message
        assert "before its first reply; it may require TLS: try rediss:// or --tls" in message
        assert "s3cret" not in message


def test_tls_to_a_plain_port(redis_server: RedisServer) -> None:
    """rediss:// to a port without TLS fails in time, with a hint."""
    message = connect(f"rediss://localhost:{redis_server.port}", Limits(timeout=1))
    by_newer_openssl = "the server does not use TLS on this port; try redis:// instead of rediss://"
    assert message.endswith(("or its port does not use TLS", by_newer_openssl))


def test_another_host_name(tls_port: int, certificate: Path) -> None:
    """A certificate for another host is named as the reason."""
    message = connect(f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={certificate}/cert.pem")
    assert "the server's certificate is not valid for the name 127.0.0.1" in message
    assert "--tls-ca" not in message


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_client_certificate_is_demanded(certificate: Path, version: str) -> None:
    """A server that demands a client certificate is named as such; with one that it accepts, all works.

    With TLS 1.3 the demand is an alert that may be lost with the connection; with 1.2 it is a failed handshake.
    """
    port = find_free_port()
    arguments = [*tls_arguments(port, certificate), "--tls-auth-clients", "yes", "--tls-protocols", version]
    url = f"rediss://localhost:{port}?ssl_ca_certs={certificate}/cert.pem"
    with RedisServer(arguments=arguments):
        for _ in range(5):
            message = connect(url)
            assert "client certificate" in message
            assert message.endswith("--tls-cert and --tls-key")
        assert connect(f"{url}&ssl_certfile={certificate}/cert.pem&ssl_keyfile={certificate}/key.pem") == ""


@pytest.mark.parametrize("option", ["ca_certs", "certfile", "keyfile"])
def test_a_missing_file(tls_port: int, certificate: Path, option: str) -> None:
    """A file that is missing is named, with its option."""
    files = {"ca_certs": "cert.pem", "certfile": "cert.pem", "keyfile": "key.pem"} | {option: "missing.pem"}
    query = "&".join(f"ssl_{name}={certificate}/{file}" for name, file in files.items())
    name = {"ca_certs": "--tls-ca", "certfile": "--tls-cert", "keyfile": "--tls-key"}[option]
    expected = f"{certificate}/missing.pem, the file of {name}, can't be read: No such file or directory"
    assert connect(f"rediss://localhost:{tls_port}?{query}") == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ssl_ca_certs={0}/text", "the file of --tls-ca contains no certificate"),
        ("ssl_ca_certs={0}/cert.pem&ssl_certfile={0}/cert.pem", "--tls-key"),
        ("ssl_ca_certs={0}/cert.pem&ssl_certfile={0}/cert.pem&ssl_keyfile={0}/other.pem", "does not belong to"),
    ],
)
def test_files_of_another_kind(tls_port: int, certificate: Path, query: str, expected: str) -> None:
    """A file without a certificate, and a key that does not belong to the certificate, are named as such."""
    (certificate / "text").write_text("no certificate")
    subprocess.run(
        ["openssl", "genrsa", "-out", certificate / "other.pem", "2048"], check=True, capture_output=True, timeout=60
    )
    assert expected in connect(f"rediss://localhost:{tls_port}?{query.format(certificate)}")


def test_a_missing_socket(tmp_path: Path) -> None:
    """A missing Unix socket is not mistaken for a missing file of TLS."""
    assert "there is no such socket" in connect(f"unix://{tmp_path}/missing.sock")
