"""Say what would keep a mount from working: the server, the user's rights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._config import find_password
from redisfuse.cli._options import BYTES, SectionCommand, address_from, server_options
from redisfuse.cli._output import Column, Table, json_option, print_json
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.client.acl import Report, Verdict
    from redisfuse.client.address import Address
    from redisfuse.client.capabilities import Facts
    from redisfuse.client.client import Server

_WORDS = {True: "ok", False: "trouble", None: "unknown"}
_STYLES = {True: "green", False: "bold red", None: "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer; `ok` is None where it could not be told, `counts` whether trouble makes the status 1."""

    check: str
    ok: bool | None
    says: str
    missing: tuple[str, ...] = ()
    rule: str = ""
    counts: bool = True


@click.command(cls=SectionCommand)
@click.argument("source", nargs=-1, metavar="(HOST PORT | URL)")
@server_options
@click.option("--prefix", type=BYTES, default=b"", help="Ask about keys that begin with this, not all.")
@click.option(
    "--write",
    is_flag=True,
    help="Write mode must be possible too. If the user may not ask what it may do, writes are queued and thrown away; "
    "a denial then shows in the server's ACL LOG.",
)
@json_option
@click.pass_context
def command(context: click.Context, /, source: tuple[str, ...], **given: Any) -> None:
    """Say what would keep a mount from working: the server, the user's rights.

    Nothing is changed. For each way to mount it says what the user lacks, and prints the least ACL rule that would do.
    Exit status 1 if something is missing.
    """
    as_json, prefix, write = given.pop("as_json"), given.pop("prefix"), given.pop("write")
    del given["password_file"]
    address = address_from(source, password=find_password(context), **given)
    findings = list(_examine(address, given["timeout"], prefix, write=write))
    if as_json:
        for finding in findings:
            print_json(_row(finding))
    else:
        _show(findings)
    if any(finding.counts and finding.ok is not True for finding in findings):
        context.exit(1)


def _examine(address: Address, timeout: float, prefix: bytes, *, write: bool) -> Iterator[Finding]:
    """Everything that is looked at, in the order in which a mount would need it."""
    from redisfuse.client.acl import inspect
    from redisfuse.client.client import Server
    from redisfuse.client.limits import Limits

    yield _fuse()
    server = Server(address, Limits(timeout=timeout))
    try:
        facts = server.connect()
        yield Finding("server", True, _about(server, facts))
        report = inspect(server, prefix=prefix, rehearse_writes=write)
    finally:
        server.close()
    for verdict in report.verdicts:
        yield _judged(verdict, report, facts, wanted=write or verdict.mode != "write")
    for note in report.notes:
        yield Finding("note", None, note, counts=False)


def _fuse() -> Finding:
    from redisfuse.fuse.backends import available

    found = available()
    usable = [each.name for each in found if not each.reason]
    return Finding(
        "fuse",
        bool(usable),
        f"can mount with {' and '.join(usable)}" if usable else "; ".join(each.reason for each in found),
    )


def _about(server: Server, facts: Facts) -> str:
    role = "a replica: it takes no writes" if facts.replica else "a master"
    return f"{server.address.place}: {facts.label}, {role}{', still loading its data' if facts.loading else ''}"


def _judged(verdict: Verdict, report: Report, facts: Facts, *, wanted: bool) -> Finding:
    if verdict.allowed:
        says = f"user {report.user} may do all of it"
    elif verdict.missing:
        says = f"user {report.user} lacks {' '.join(verdict.missing)}"
    elif verdict.mode == "write" and not wanted:
        says = f"user {report.user} may not ask what it may do; --write tries it, harmlessly"
    else:
        says = f"what user {report.user} may do could not be found out"
    if verdict.mode == "following" and not facts.has_tracking:
        says = f"{facts.label} can't tell of changes (Redis 6.0 can): a mount looks again every second"
    return Finding(verdict.mode, verdict.allowed, says, verdict.missing, verdict.rule, counts=wanted)


def _row(finding: Finding) -> dict[str, Any]:
    row: dict[str, Any] = {"check": finding.check, "ok": finding.ok, "says": finding.says}
    if finding.rule:
        row |= {"missing": list(finding.missing), "rule": finding.rule}
    return row


def _show(findings: list[Finding]) -> None:
    table = Table([Column("", 9), Column("", 7), Column("", 0)])
    for finding in findings:
        cells = (finding.check, _WORDS[finding.ok], for_terminal(finding.says))
        table.row(cells, cells, _STYLES[finding.ok])
    rules = {finding.check: finding.rule for finding in findings if finding.rule}
    for mode, use in (("following", "The least rule to read, and follow changes"), ("write", "To write as well")):
        click.echo(f"\n{use}:\n  ACL SETUSER redisfuse on >PASSWORD {for_terminal(rules[mode])}")
