"""Mount a Redis server as a folder (what is done when no command is named)."""

import difflib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.cli._config import find_password, load_config_files
from redisfuse.cli._options import BYTES, PATH, SIZE, SectionCommand, SectionOption, config_option, server_options
from redisfuse.config import Config, MountOptions, split_mount_options
from redisfuse.errors import UsageError

WRITE_SECTION = "Changing things"
TREE_SECTION = "What the tree looks like"
LIMITS_SECTION = "Being a good guest"
JUNK_SECTION = "Junk"
RUN_SECTION = "How it runs"


def _load_config_option(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """`--config` among the options of a mount that was not named: the group could not see it."""
    if path:
        config = load_config_files(path)
        config.check_top_level(context.command)
        context.find_root().obj = config
        context.default_map = config.build_default_map("mount", context.command)


@click.command(cls=SectionCommand, options_metavar="[OPTIONS]")
@click.argument("source", nargs=-1, metavar="(HOST PORT | URL) MOUNTPOINT")
@server_options
@config_option(
    "--write", section=WRITE_SECTION, is_flag=True, help="Write mode: edits reach Redis, each journaled first."
)
@click.option(
    "--journal",
    cls=SectionOption,
    section=WRITE_SECTION,
    is_flag=True,
    help="Journal every change. --write implies it; there is no writing without.",
)
@config_option(
    "--journal-file",
    section=WRITE_SECTION,
    type=PATH,
    show_default="journal.db in the platform's state folder",
    help="The journal's database.",
)
@config_option(
    "--no-conflict-check",
    section=WRITE_SECTION,
    is_flag=True,
    help="Save even if the key changed since the file was opened.",
)
@config_option(
    "--allow",
    section=WRITE_SECTION,
    multiple=True,
    type=BYTES,
    metavar="GLOB",
    help="Only keys that match may be changed; may be repeated.",
)
@config_option(
    "--dump-limit",
    section=WRITE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="DUMP collections of up to so many elements.",
)
@config_option("--separator", section=TREE_SECTION, type=BYTES, help="What separates directories in a key.")
@config_option("--prefix", section=TREE_SECTION, type=BYTES, help="Mount only the keys that begin with this.")
@config_option(
    "--new-files",
    section=TREE_SECTION,
    type=click.Choice(["auto", "string"]),
    help="What NAME.EXT becomes when it is created: a field of hash NAME (auto), or always a string.",
)
@config_option(
    "--render-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="A collection of more elements has size 0 and streams.",
)
@config_option(
    "--field-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="A hash of more fields is listed as one file.",
)
@config_option(
    "--hash-limit",
    section=TREE_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="In a directory of more hashes, each is listed as one file.",
)
@config_option("--cache-memory", section=LIMITS_SECTION, type=SIZE, help="Memory for attributes and small contents.")
@config_option(
    "--index-memory",
    section=LIMITS_SECTION,
    type=SIZE,
    help="Memory for the names of keys; beyond, they move to a private temporary file.",
)
@config_option(
    "--connections", section=LIMITS_SECTION, type=click.IntRange(1), metavar="N", help="At most so many connections."
)
@config_option(
    "--rate",
    section=LIMITS_SECTION,
    type=click.IntRange(0),
    metavar="N",
    help="At most so many commands a second; 0 is no limit.",
)
@config_option(
    "--scan-count",
    section=LIMITS_SECTION,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Keys that one SCAN asks for.",
)
@config_option(
    "--rescan-seconds",
    section=LIMITS_SECTION,
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="The keys are read again so often where changes can't be followed.",
)
@config_option(
    "--no-junk-filter", section=JUNK_SECTION, is_flag=True, help="Let editors' and systems' droppings into Redis."
)
@config_option(
    "--junk-file",
    section=JUNK_SECTION,
    type=PATH,
    help="Junk patterns (gitignore syntax) instead of the built-in ones.",
)
@config_option(
    "--junk", section=JUNK_SECTION, multiple=True, metavar="PATTERN", help="One more junk pattern; may be repeated."
)
@config_option("--keep", section=JUNK_SECTION, multiple=True, metavar="PATTERN", help="Never junk; may be repeated.")
@config_option("--show-junk", section=JUNK_SECTION, is_flag=True, help="List junk that is already in Redis.")
@config_option("--scratch-memory", section=JUNK_SECTION, type=SIZE, help="Memory for junk made through the mount.")
@config_option(
    "--park-seconds",
    section=JUNK_SECTION,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="A key renamed to a junk name waits so long for its new content.",
)
@config_option(
    "--binding",
    section=RUN_SECTION,
    type=click.Choice(["auto", "fusepy", "mfusepy"]),
    help="fusepy is libfuse 2, mfusepy libfuse 3.",
)
@config_option(
    "--ask-on-open",
    section=RUN_SECTION,
    is_flag=True,
    help="Without --write: a file shows what it held when it was opened, not when it was first read; slower.",
)
@click.option(
    "-o",
    "options",
    cls=SectionOption,
    section=RUN_SECTION,
    multiple=True,
    metavar="OPT[,OPT…]",
    help="Mount options: ro, allow_other, uid=, gid=, umask=, libfuse's own, and every long option above.",
)
@config_option(
    "--daemon", section=RUN_SECTION, is_flag=True, help="Return when the mount answers, and go on in the background."
)
@click.option(
    "-f",
    "--foreground",
    cls=SectionOption,
    section=RUN_SECTION,
    is_flag=True,
    help="Stay in the foreground, as it does anyway.",
)
@config_option(
    "--log-file",
    section=RUN_SECTION,
    type=PATH,
    show_default="the terminal; a daemon: redisfuse.log in the platform's state folder",
    help="Where the log goes.",
)
@config_option("--debug", section=RUN_SECTION, is_flag=True, help="Log what is done, and tracebacks.")
@click.option(
    "--config",
    cls=SectionOption,
    section=RUN_SECTION,
    type=PATH,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=_load_config_option,
    help="Read this configuration file, instead of /etc/redisfuse.toml and the user's.",
)
@click.pass_context
def command(context: click.Context, /, **_: Any) -> None:
    """Mount a Redis server as a folder, read-only unless --write is said.

    URL is redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://. The mount stays in the foreground until
    Ctrl-C, `redisfuse umount MOUNTPOINT` or umount(8).
    """
    settings = build_config(context)
    from redisfuse.mount import run

    run.mount_and_serve(settings)


def build_config(context: click.Context) -> Config:
    """What the parsed command line asks for. Raises UsageError."""
    given = _apply_mount_options(context)
    options: MountOptions = given["options"]
    source = given.pop("source")
    if given["foreground"] and given["daemon"]:
        raise UsageError("-f and --daemon contradict each other")
    if given.pop("journal") and not given["write"]:
        raise UsageError("--journal without --write: a read-only mount has nothing to journal; add --write")
    if options.read_only and given["write"]:
        if context.get_parameter_source("write") is ParameterSource.COMMANDLINE:
            raise UsageError("-o ro and --write contradict each other")
        given["write"] = False
    target, port, mountpoint = _parse_source(source)
    root = context.find_root()
    given |= {
        "target": target,
        "port": port,
        "mountpoint": mountpoint,
        "password": find_password(context),
        "conflict_check": not given.pop("no_conflict_check"),
        "junk_filter": not given.pop("no_junk_filter"),
        "debug": given["debug"] or bool(root.params.get("debug")),
    }
    for name in ("foreground", "password_file"):
        del given[name]
    if not given["separator"]:
        raise UsageError("--separator can't be empty")
    return Config(**given)


def _apply_mount_options(context: click.Context) -> dict[str, Any]:
    """The parameters, with the long options applied that were said in `-o`, as fstab must: `-o write,prefix=app:`."""
    given = dict(context.params)
    named = {param.name: param for param in context.command.params if isinstance(param, click.Option)}
    for name in ("options", "config", "foreground", "help"):
        named.pop(name, None)
    rest = []
    for word in split_mount_options(given["options"]):
        name, equals, value = word.partition("=")
        option = named.get(name.replace("-", "_"))
        if option is None or (name == "user" and not equals):  # a bare `user` in fstab is mount(8)'s own
            rest.append(word)
            continue
        assert option.name
        if option.is_flag != (not equals):
            raise UsageError(f"-o {name}: " + ("takes no value" if option.is_flag else "needs a value"))
        found = True if option.is_flag else option.type.convert(value, option, context)
        given[option.name] = (*given[option.name], found) if option.multiple else found
        context.set_parameter_source(option.name, ParameterSource.COMMANDLINE)
        context.params[option.name] = given[option.name]
    given["options"] = MountOptions.parse(rest)
    return given


def _parse_source(arguments: tuple[str, ...]) -> tuple[str, int | None, Path]:
    """HOST PORT MOUNTPOINT or URL MOUNTPOINT. Raises UsageError, saying the nearest right form."""
    if len(arguments) == 3 and "://" not in arguments[0]:
        host, port, mountpoint = arguments
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"{port!r} is no port: say HOST PORT MOUNTPOINT, such as 127.0.0.1 6379 /mnt/redis")
        return host, int(port), PATH.convert(mountpoint, None, None)
    if len(arguments) == 2 and "://" in arguments[0]:
        return arguments[0], None, PATH.convert(arguments[1], None, None)
    if len(arguments) == 1 and "://" in arguments[0]:
        raise UsageError("the mount point is missing: say URL MOUNTPOINT")
    raise UsageError(f"{_suggest_correction(arguments)}say HOST PORT MOUNTPOINT or redis://HOST:PORT/DB MOUNTPOINT")


def _suggest_correction(arguments: tuple[str, ...]) -> str:
    from redisfuse.cli.main import group

    if not arguments:
        return "what is to be mounted? "
    if arguments[0].startswith("/"):
        return f"for a Unix socket say unix://{arguments[0]}; else "
    near = difflib.get_close_matches(arguments[0], group.list_commands(click.Context(group)), n=1)
    return f"no command {arguments[0]!r}, did you mean {near[0]!r}? To mount, " if near else ""
