"""Say what would keep a mount from working: the server, the user's rights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._config import find_password
from redisfuse.cli._options import BYTES, SectionCommand, parse_server_address, server_options
from redisfuse.cli._output import TableColumn, TablePrinter, json_option, print_json
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.client.acl import AclReport, ModeAccess
    from redisfuse.client.address import Address
    from redisfuse.client.capabilities import ServerInfo
    from redisfuse.client.client import RedisClient

_STATUS_WORDS = {True: "ok", False: "trouble", None: "unknown"}
_STATUS_STYLES = {True: "green", False: "bold red", None: "yellow"}


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One line of the answer; `ok` is None where it could not be told, `is_required` whether trouble makes the status 1."""

    check: str
    ok: bool | None
    message: str
    missing: tuple[str, ...] = ()
    acl_rule: str = ""
    is_required: bool = True


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
def command(context: click.Context, /, source: tuple[str, ...], **options: Any) -> None:
    """Say what would keep a mount from working: the server, the user's rights.

    Nothing is changed. For each way to mount it says what the user lacks, and prints the least ACL rule that would do.
    Exit status 1 if something is missing.
    """
    as_json, prefix, write = options.pop("as_json"), options.pop("prefix"), options.pop("write")
    del options["password_file"]
    address = parse_server_address(source, password=find_password(context), **options)
    findings = list(_run_checks(address, options["timeout"], prefix, write=write))
    if as_json:
        for finding in findings:
            print_json(_finding_to_json(finding))
    else:
        _print_findings(findings)
    if any(finding.is_required and finding.ok is not True for finding in findings):
        context.exit(1)


def _run_checks(address: Address, timeout: float, prefix: bytes, *, write: bool) -> Iterator[DoctorFinding]:
    """Everything that is looked at, in the order in which a mount would need it."""
    from redisfuse.client.acl import check_acl
    from redisfuse.client.client import RedisClient
    from redisfuse.client.limits import Limits

    yield _check_fuse()
    server = RedisClient(address, Limits(timeout=timeout))
    try:
        facts = server.connect()
        yield DoctorFinding("server", True, _describe_server(server, facts))
        report = check_acl(server, prefix=prefix, queue_writes=write)
    finally:
        server.close()
    for verdict in report.modes:
        yield _assess_mode(verdict, report, facts, is_required=write or verdict.mode != "write")
    for note in report.notes:
        yield DoctorFinding("note", None, note, is_required=False)


def _check_fuse() -> DoctorFinding:
    from redisfuse.fuse.backends import list_bindings

    found = list_bindings()
    usable = [each.name for each in found if not each.reason]
    return DoctorFinding(
        "fuse",
        bool(usable),
        f"can mount with {' and '.join(usable)}" if usable else "; ".join(each.reason for each in found),
    )


def _describe_server(server: RedisClient, facts: ServerInfo) -> str:
    role = "a replica: it takes no writes" if facts.is_replica else "a master"
    return f"{server.address.endpoint}: {facts.label}, {role}{', still loading its data' if facts.loading else ''}"


def _assess_mode(verdict: ModeAccess, report: AclReport, facts: ServerInfo, *, is_required: bool) -> DoctorFinding:
    if verdict.allowed:
        says = f"user {report.user} may do all of it"
    elif verdict.missing_rules:
        says = f"user {report.user} lacks {' '.join(verdict.missing_rules)}"
    elif verdict.mode == "write" and not is_required:
        says = f"user {report.user} may not ask what it may do; --write tries it, harmlessly"
    else:
        says = f"what user {report.user} may do could not be found out"
    if verdict.mode == "following" and not facts.has_tracking:
        says = f"{facts.label} can't tell of changes (Redis 6.0 can): a mount looks again every second"
    return DoctorFinding(
        verdict.mode, verdict.allowed, says, verdict.missing_rules, verdict.required_acl, is_required=is_required
    )


def _finding_to_json(finding: DoctorFinding) -> dict[str, Any]:
    row: dict[str, Any] = {"check": finding.check, "ok": finding.ok, "says": finding.message}
    if finding.acl_rule:
        row |= {"missing": list(finding.missing), "rule": finding.acl_rule}
    return row


def _print_findings(findings: list[DoctorFinding]) -> None:
    table = TablePrinter([TableColumn("", 9), TableColumn("", 7), TableColumn("", 0)])
    for finding in findings:
        cells = (finding.check, _STATUS_WORDS[finding.ok], for_terminal(finding.message))
        table.print_row(cells, cells, _STATUS_STYLES[finding.ok])
    rules = {finding.check: finding.acl_rule for finding in findings if finding.acl_rule}
    for mode, use in (("following", "The least rule to read, and follow changes"), ("write", "To write as well")):
        click.echo(f"\n{use}:\n  ACL SETUSER redisfuse on >PASSWORD {for_terminal(rules[mode])}")
