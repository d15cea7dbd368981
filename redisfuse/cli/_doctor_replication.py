"""The checks of `redisfuse doctor` for Sentinels and replicas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redisfuse.cli.doctor import DoctorFinding
from redisfuse.client.address import format_host_port
from redisfuse.client.info import split_info
from redisfuse.client.replication import parse_link
from redisfuse.errors import RedisFuseError

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient

_REPLICA_LINE = re.compile(rb"slave\d+")  # INFO has one such line for each replica


def check_sentinels(server: RedisClient, *, write: bool) -> Iterator[DoctorFinding]:
    """Yield a finding for each Sentinel, and one about their number."""
    sentinels = server.sentinels
    if sentinels is None:
        return
    for endpoint, report, error in sentinels.survey(server.limits.timeout):
        name = format_host_port(*endpoint)
        if report is None:
            message = f"{name} does not answer: {error or 'no answer in time'}"
        else:
            failing_over = "; a fail-over is in progress" if report.is_failing_over else ""
            message = f"{name}: the master of {sentinels.service} is {format_host_port(*report.master)}{failing_over}"
        is_ok = report is not None and not report.is_failing_over
        yield DoctorFinding("sentinel", is_ok, message, is_required=False)
    answering, known = sentinels.count_sentinels()
    is_majority = 2 * answering > known
    needed = "" if is_majority else ", but more than half of them must for --write"
    yield DoctorFinding("sentinels", is_majority, f"{answering} of {known} answer{needed}", is_required=write)


def check_replication(server: RedisClient) -> Iterator[DoctorFinding]:
    """Yield the link of a replica to its master, or the replicas of a master.

    Yields nothing if the ACL denies INFO.
    """
    try:
        lines = split_info(server.execute(b"INFO", b"replication"))
    except RedisFuseError:
        return
    link = parse_link(lines)
    if link is not None:
        yield DoctorFinding("link", link.is_up, link.text, is_required=False)
    for name, value in lines.items():
        if _REPLICA_LINE.fullmatch(name):
            fields = dict(part.partition("=")[::2] for part in value.decode("utf-8", "replace").split(","))
            state, lag = fields.get("state", ""), fields.get("lag", "?")
            endpoint = format_host_port(fields.get("ip", ""), int(fields.get("port", 0)))
            message = f"{endpoint}: {state}, last acknowledged {lag} s ago"
            yield DoctorFinding("replica", state == "online", message, is_required=False)
