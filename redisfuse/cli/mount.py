"""Mount a Redis server as a folder (the default command)."""

import difflib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.cli._config_files import load_config_option
from redisfuse.cli._decode_options import decode_options
from redisfuse.cli._named_servers import complete_source, expand_mount_source, find_servers
from redisfuse.cli._options import (
    SEPARATOR_HELP,
    WAIT_REPLICAS_HELP,
    SectionCommand,
    build_server_options,
    config_option,
    is_host_and_port,
    section_option,
)
from redisfuse.cli._params import BYTES, PATH, SIZE
from redisfuse.cli._passwords import locate_password
from redisfuse.config import Config, MountOptions, split_mount_options
from redisfuse.errors import UsageError

REPLICA_SECTION = "Replicas"
WRITE_SECTION = "Writing"
TREE_SECTION = "File tree"
LIMITS_SECTION = "Limits"
JUNK_SECTION = "Junk files"
RUN_SECTION = "Operation"


@click.command(cls=SectionCommand, options_metavar="[OPTIONS]")
@click.argument("source", nargs=-1, metavar="(HOST PORT | URL | NAME) MOUNTPOINT", shell_complete=complete_source)
@build_server_options("How long to wait for a reply of the server before failing with EIO.")
@config_option(
    "--replicas",
    section=REPLICA_SECTION,
    is_flag=True,
    help="Read replicas only and send nothing to the masters; not with --write.",
)
@config_option(
    "--max-lag",
    section=REPLICA_SECTION,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="With --replicas: fail with EIO if the replica's values may be older; 0: no limit.",
)
@config_option(
    "--write", section=WRITE_SECTION, is_flag=True, help="Write mode: edits change Redis, each journaled first."
)
@section_option(
    "--journal",
    section=WRITE_SECTION,
    is_flag=True,
    help="Journal every change. Implied by --write, which always journals.",
)
@config_option(
    "--journal-file",
    section=WRITE_SECTION,
    type=PATH,
    show_default="journal.db in the platform's state folder",
    help="Database file of the journal.",
)
@config_option("--wait-replicas", section=WRITE_SECTION, type=click.IntRange(0), metavar="N", help=WAIT_REPLICAS_HELP)
@config_option(
    "--no-conflict-check",
    section=WRITE_SECTION,
    is_flag=True,
    help="Save even if the key has changed since the file was opened.",
)
@config_option(
    "--no-added-newline",
    section=WRITE_SECTION,
    is_flag=True,
    help="Save without the newline that an editor adds at the end of a value that had none.",
)
@config_option(
    "--allow",
    section=WRITE_SECTION,
    multiple=True,
    type=BYTES,
    metavar="GLOB",
    help="Allow changes only to keys that match; may be repeated.",
)
@config_option(
    "--dump-limit",
    section=WRITE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="Maximum number of elements of a collection to DUMP.",
)
@config_option(
    "--operation-idle",
    section=WRITE_SECTION,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Pause of a program after which its next change begins a new operation in the journal.",
)
@config_option("--separator", section=TREE_SECTION, type=BYTES, help=SEPARATOR_HELP)
@config_option("--prefix", section=TREE_SECTION, type=BYTES, help="Mount only keys with this prefix.")
@config_option(
    "--new-files",
    section=TREE_SECTION,
    type=click.Choice(["auto", "string"]),
    help="Type of a new file NAME.EXT: a field of hash NAME (auto), or always a string.",
)
@config_option(
    "--render-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="Maximum number of elements of a collection with an exact size; a larger one has size 0 and streams.",
)
@config_option(
    "--hashes",
    section=TREE_SECTION,
    type=click.Choice(["auto", "fields", "files"]),
    help="List each hash as its fields, as one file, or as fields up to the two limits below (auto).",
)
@config_option(
    "--field-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="With --hashes auto: maximum number of fields of a hash to list as files; a larger hash is one file.",
)
@config_option(
    "--hash-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="With --hashes auto: maximum number of hashes in a folder to list as fields; with more, each hash is one "
    "file.",
)
@decode_options
@config_option("--cache-memory", section=LIMITS_SECTION, type=SIZE, help="Memory for metadata and small contents.")
@config_option(
    "--index-memory",
    section=LIMITS_SECTION,
    type=SIZE,
    help="Memory for key names; a larger index moves to a private temporary file.",
)
@config_option(
    "--connections", section=LIMITS_SECTION, type=click.IntRange(1), metavar="N", help="Maximum number of connections."
)
@config_option(
    "--rate",
    section=LIMITS_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="Maximum number of commands per second; 0: no limit.",
)
@config_option(
    "--scan-count",
    section=LIMITS_SECTION,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Number of keys to request in one SCAN.",
)
@config_option(
    "--rescan-seconds",
    section=LIMITS_SECTION,
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="How often to read all key names again where changes can't be tracked.",
)
@config_option(
    "--no-follow",
    section=LIMITS_SECTION,
    is_flag=True,
    help="Don't track changes, which costs the server time for each write; read all key names every --rescan-seconds.",
)
@config_option(
    "--idle-seconds",
    section=LIMITS_SECTION,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Stop tracking changes when the mount has not been used for this long, until it is used again; 0: never.",
)
@config_option(
    "--no-junk-filter",
    section=JUNK_SECTION,
    is_flag=True,
    help="Write the junk files of editors and systems to Redis, too.",
)
@config_option(
    "--junk-file",
    section=JUNK_SECTION,
    type=PATH,
    help="Junk patterns (gitignore syntax) that replace the built-in ones.",
)
@config_option(
    "--junk", section=JUNK_SECTION, multiple=True, metavar="PATTERN", help="Additional junk pattern; may be repeated."
)
@config_option(
    "--keep",
    section=JUNK_SECTION,
    multiple=True,
    metavar="PATTERN",
    help="Pattern of files that are never junk; may be repeated.",
)
@config_option("--show-junk", section=JUNK_SECTION, is_flag=True, help="List junk that is already in Redis.")
@config_option(
    "--scratch-memory",
    section=JUNK_SECTION,
    type=SIZE,
    help="Memory for junk files that are created in the mount.",
)
@config_option(
    "--park-seconds",
    section=JUNK_SECTION,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long to wait for new content of a key that was renamed to a junk name.",
)
@config_option(
    "--binding",
    section=RUN_SECTION,
    type=click.Choice(["auto", "fusepy", "mfusepy"]),
    help="fusepy uses libfuse 2, mfusepy libfuse 3.",
)
@config_option(
    "--ask-on-open",
    section=RUN_SECTION,
    is_flag=True,
    help="Without --write: show the content of a file as of its open, not as of its first read; slower.",
)
@section_option(
    "-o",
    "options",
    section=RUN_SECTION,
    multiple=True,
    metavar="OPT[,OPT…]",
    help="Mount options: ro, allow_other, uid=, gid=, umask=, others of mount(8), and every long option above.",
)
@config_option(
    "--daemon",
    section=RUN_SECTION,
    is_flag=True,
    help="Return when the mount is ready, and continue in the background.",
)
@section_option(
    "-f",
    "--foreground",
    section=RUN_SECTION,
    is_flag=True,
    help="Stay in the foreground (the default).",
)
@config_option(
    "--log-file",
    section=RUN_SECTION,
    type=PATH,
    show_default="the terminal; a daemon: redisfuse.log in the platform's state folder",
    help="File for the log.",
)
@config_option("--debug", section=RUN_SECTION, is_flag=True, help="Log each step, and tracebacks.")
@section_option(
    "--config",
    section=RUN_SECTION,
    type=PATH,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=load_config_option,
    help="Configuration file, instead of /etc/redisfuse.toml and the user's.",
)
@click.pass_context
def command(context: click.Context, /, **_: Any) -> None:
    """Mount a Redis server as a folder, read-only without --write.

    URL is redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; HOST or HOST:PORT is an address, too.
    The address of any node mounts its whole cluster. NAME is a server in the configuration, which may have a mount
    point; `redisfuse config NAME` shows its settings. The mount runs in the foreground until
    Ctrl-C, `redisfuse umount MOUNTPOINT` or umount(8).

    \b
    redisfuse mount redis://reader@host/0 ~/redis
    redisfuse mount --write --prefix app: 127.0.0.1 6379 ~/redis
    redisfuse mount prod ~/redis
    """  # noqa: D301 - click reads the control character \b
    settings = build_config(context)
    from redisfuse.mount import run

    run.mount_and_serve(settings)


def build_config(context: click.Context) -> Config:
    """Return the settings in a parsed command line.

    Raises UsageError.
    """
    source = expand_mount_source(context, context.params["source"])
    given = apply_mount_options(context)
    options: MountOptions = given["options"]
    del given["source"]
    if given["foreground"] and given["daemon"]:
        raise UsageError("-f and --daemon contradict each other")
    if given.pop("journal") and not given["write"]:
        raise UsageError("--journal without --write: a read-only mount has nothing to journal; add --write")
    if options.read_only and given["write"]:
        if context.get_parameter_source("write") is ParameterSource.COMMANDLINE:
            raise UsageError("-o ro and --write contradict each other")
        given["write"] = False
    if given["replicas"] and given["write"]:
        raise UsageError("--replicas and --write contradict each other: a replica accepts no writes")
    if given["max_lag"] and not given["replicas"]:
        raise UsageError("--max-lag limits the age of a replica's values: add --replicas")
    target, port, mountpoint = _parse_source(context, source)
    root = context.find_root()
    password = locate_password(context)
    given |= {
        "target": target,
        "port": port,
        "mountpoint": mountpoint,
        "password": password.password,
        "password_file": password.file,
        "conflict_check": not given.pop("no_conflict_check"),
        "added_newline": not given.pop("no_added_newline"),
        "follow": not given.pop("no_follow"),
        "junk_filter": not given.pop("no_junk_filter"),
        "debug": given["debug"] or bool(root.params.get("debug")),
    }
    del given["foreground"]
    if not given["separator"]:
        raise UsageError("--separator can't be empty")
    return Config(**given)


def apply_mount_options(context: click.Context) -> dict[str, Any]:
    """Return the parameters, including long options in `-o`.

    /etc/fstab has only `-o`, so it accepts them all: `-o write,prefix=app:`.
    """
    given = dict(context.params)
    long_options = {param.name: param for param in context.command.params if isinstance(param, click.Option)}
    for name in ("options", "config", "foreground", "help"):
        long_options.pop(name, None)
    other_words = []
    for word in split_mount_options(given["options"]):
        name, equals, value = word.partition("=")
        option = long_options.get(name.replace("-", "_"))
        if option is None or (name == "user" and not equals):  # a bare `user` in fstab is mount(8)'s own
            other_words.append(word)
            continue
        assert option.name
        if option.is_flag != (not equals):
            raise UsageError(f"-o {name}: " + ("takes no value" if option.is_flag else "needs a value"))
        converted = True if option.is_flag else option.type.convert(value, option, context)
        given[option.name] = (*given[option.name], converted) if option.multiple else converted
        context.set_parameter_source(option.name, ParameterSource.COMMANDLINE)
        context.params[option.name] = given[option.name]
    given["options"] = MountOptions.parse(other_words)
    return given


def _parse_source(context: click.Context, arguments: tuple[str, ...]) -> tuple[str, int | None, Path]:
    """Return (target, port, mount point) of HOST PORT MOUNTPOINT or URL MOUNTPOINT.

    Raises UsageError with the nearest valid form.
    """
    if len(arguments) == 3 and not any("://" in word for word in arguments[:2]):
        host, port, mountpoint = arguments
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"{port!r} is not a port: write HOST PORT MOUNTPOINT, such as 127.0.0.1 6379 /mnt/redis")
        return host, int(port), PATH.convert(mountpoint, None, None)
    if len(arguments) == 2 and "://" in arguments[0]:
        return arguments[0], None, PATH.convert(arguments[1], None, None)
    if len(arguments) == 1 and "://" in arguments[0]:
        raise UsageError("the mount point is missing: write URL MOUNTPOINT")
    suggestion = _suggest_correction(context, arguments)
    if len(arguments) == 2 and is_host_and_port(arguments[0]) and not arguments[1].isdigit() and not suggestion:
        return f"redis://{arguments[0]}", None, PATH.convert(arguments[1], None, None)
    raise UsageError(f"{suggestion}write HOST PORT MOUNTPOINT or redis://HOST:PORT/DB MOUNTPOINT")


def _suggest_correction(context: click.Context, arguments: tuple[str, ...]) -> str:
    from redisfuse.cli.main import group

    if not arguments:
        return "no server given: "
    if arguments[0].startswith("/"):
        return f"for a Unix socket write unix://{arguments[0]}; otherwise "
    names = group.list_commands(click.Context(group))
    if len(arguments) == 1:  # with two, it may be a host
        names += find_servers(context)
    similar = difflib.get_close_matches(arguments[0], names, n=1)
    return f"no command or server {arguments[0]!r}, did you mean {similar[0]!r}? To mount, " if similar else ""
