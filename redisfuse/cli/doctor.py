"""Check whether a mount can work: libfuse, the server, the user's permissions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._named_servers import complete_source, expand_server
from redisfuse.cli._options import TIMEOUT_HELP, SectionCommand, build_server_options, parse_server_address
from redisfuse.cli._output import TableColumn, TablePrinter, json_option, print_json
from redisfuse.cli._params import BYTES
from redisfuse.cli._passwords import find_password
from redisfuse.errors import MountError
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
    """The result of one check."""

    check: str
    ok: bool | None  # None: could not be determined
    message: str
    missing: tuple[str, ...] = ()
    acl_rule: str = ""
    is_required: bool = True  # the exit status is 1 if it is not ok


@click.command(cls=SectionCommand)
@click.argument("source", nargs=-1, metavar="(HOST PORT | URL | NAME)", shell_complete=complete_source)
@build_server_options(TIMEOUT_HELP)
@click.option("--prefix", type=BYTES, default=b"", help="Check access to keys with this prefix only.")
@click.option(
    "--write",
    is_flag=True,
    help="Require write mode, too. If the user may not query its own permissions, writes are queued and discarded; "
    "a denial then appears in the server's ACL LOG.",
)
@json_option
@click.pass_context
def command(context: click.Context, /, source: tuple[str, ...], **options: Any) -> None:
    """Check whether a mount can work: libfuse, the server, the user's permissions.

    Changes nothing. For each mode of a mount, shows the permissions that the user lacks and the minimal ACL rule. The
    exit status is 1 if anything is missing.

    \b
    redisfuse doctor redis://reader@host:6379/0
    redisfuse doctor prod
    """  # noqa: D301 - click reads the control character \b
    source = expand_server(context, source)
    options = {name: context.params[name] for name in options}
    as_json, prefix, write = options.pop("as_json"), options.pop("prefix"), options.pop("write")
    del options["password_file"]
    address = parse_server_address(source, password=find_password(context), **options)
    findings: list[DoctorFinding] = []
    checks = _run_checks(address, options["timeout"], options["cluster_map"], options["ssh"], prefix, write=write)
    try:
        for finding in checks:
            findings.append(finding)
    finally:  # an unreachable server doesn't hide a missing library
        if as_json:
            for finding in findings:
                print_json(_finding_to_json(finding))
        else:
            _print_findings(findings)
    if any(finding.is_required and finding.ok is not True for finding in findings):
        context.exit(1)


def _run_checks(
    address: Address, timeout: float, cluster_map: tuple[str, ...], ssh: str | None, prefix: bytes, *, write: bool
) -> Iterator[DoctorFinding]:
    """Yield the results of all checks, in the order in which a mount depends on them."""
    from redisfuse.client.acl import check_acl
    from redisfuse.client.limits import Limits
    from redisfuse.client.opening import open_client
    from redisfuse.client.ssh_tunnels import create_address_map

    yield _check_fuse()
    yield _check_decoders()
    server = open_client(address, Limits(timeout=timeout), address_map=create_address_map(cluster_map, ssh))
    try:
        if server.is_partitioned:
            from redisfuse.cli._doctor_cluster import check_cluster

            yield from check_cluster(server, prefix, write=write)
            return
        info = server.server_info
        from redisfuse.cli._doctor_replication import check_replication, check_sentinels

        yield from check_sentinels(server, write=write)
        yield DoctorFinding("server", True, _describe_server(server, info))
        yield from check_replication(server)
        report = check_acl(server, prefix=prefix, queue_writes=write)
    finally:
        server.close()
    for access in report.modes:
        yield assess_mode(access, report, info, is_required=write or access.mode != "write")
    for note in report.notes:
        yield DoctorFinding("note", None, note, is_required=False)


def _check_fuse() -> DoctorFinding:
    """Try what a mount needs: a library, /dev/fuse, the permission to mount."""
    from redisfuse.fuse.device import list_bindings
    from redisfuse.mount.preflight import check_mount_permission

    reasons = list_bindings()
    usable = [name for name, reason in reasons.items() if not reason]
    if not usable:
        return DoctorFinding("fuse", False, "; ".join(reasons.values()))
    try:
        permission = check_mount_permission()
    except MountError as error:
        return DoctorFinding("fuse", False, str(error))
    return DoctorFinding("fuse", True, f"can mount with {' and '.join(usable)}, {permission}")


def _check_decoders() -> DoctorFinding:
    """List the formats that `NAME%text` decodes, and those whose library is missing."""
    from redisfuse.rendering.decoding.formats import FORMAT_NAMES
    from redisfuse.rendering.decoding.layers import INSTALL_HINT, list_decompressors

    decompressors = list_decompressors()
    present = [name for name, is_present in decompressors.items() if is_present]
    missing = [name for name, is_present in decompressors.items() if not is_present]
    message = f"%text decodes {', '.join((*present, *FORMAT_NAMES))}"
    if missing:
        message += f"; for {', '.join(missing)}: {INSTALL_HINT}"
    return DoctorFinding("decoders", not missing or None, message, is_required=False)


def _describe_server(server: RedisClient, info: ServerInfo) -> str:
    role = "a replica, which accepts no writes" if info.is_replica else "a master"
    return f"{server.address.endpoint}: {info.label}, {role}{', still loading its data' if info.loading else ''}"


def assess_mode(access: ModeAccess, report: AclReport, info: ServerInfo, *, is_required: bool) -> DoctorFinding:
    if access.mode == "following" and not info.has_tracking:
        message = f"{info.label} does not support tracking (Redis 6.0 does): a mount checks keys every second"
    elif access.allowed:
        message = f"user {report.user} has all permissions"
    elif access.missing_rules:
        message = f"user {report.user} lacks {' '.join(access.missing_rules)}"
    elif access.mode == "write" and not is_required:
        message = f"user {report.user} may not query its permissions; --write tests them without changing anything"
    else:
        message = f"the permissions of user {report.user} could not be determined"
    return DoctorFinding(
        access.mode, access.allowed, message, access.missing_rules, access.required_acl, is_required=is_required
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
    for mode, title in (
        ("following", "Minimal rule for reading and tracking changes"),
        ("write", "Minimal rule for writing, too"),
    ):
        if mode in rules:
            click.echo(f"\n{title}:\n  {for_terminal(_format_acl_command(rules[mode]))}")


def _format_acl_command(rule: str) -> str:
    """Return the command that creates a user, quoted for a shell.

    There `>`, `&`, `|` and `*` have a meaning.
    """
    return shlex.join(["redis-cli", "ACL", "SETUSER", "redisfuse", "on", ">PASSWORD", *rule.split(" ")])
