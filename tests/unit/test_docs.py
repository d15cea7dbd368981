"""What is documented is what there is: commands, options with their defaults, changes."""

import importlib
import re
from pathlib import Path

import click
import pytest

from redisfuse.cli.main import group

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, click.Command]:
    """Every command, those of groups as `junk list`."""
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {child}": command.commands[child] for child in command.commands}
    return found


COMMANDS = commands()


def mount_options() -> list[click.Option]:
    """The options of `mount`, `--help` apart."""
    return [option for option in COMMANDS["mount"].params if isinstance(option, click.Option)]


def row(option: click.Option) -> str:
    """The line of the README's table of options that an option must have."""
    context = click.Context(COMMANDS["mount"])
    record = option.get_help_record(context)
    assert record is not None
    default = option.get_default(context)
    shown = option.show_default if isinstance(option.show_default, str) else f"`{default}`"
    if not option.show_default or option.is_flag:
        shown = ""
    spelling = record[0].replace("|", "\\|")
    return f"| `{spelling}` | {shown} | {option.help} |"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    """Each command says in one short line what it does, and so does each of its options."""
    command = COMMANDS[name]
    first = (command.help or "").strip().partition("\n")[0]
    assert first.endswith("."), name
    assert len(first) <= 110  # at most two lines of help
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{name} {option.opts[0]}"
            assert option.help.endswith("."), f"{name} {option.opts[0]}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " not in name])
def test_a_command_modules_first_line_is_its_summary(name: str) -> None:
    """The line that `redisfuse --help` shows is a sentence that fits."""
    summary = (importlib.import_module(f"redisfuse.cli.{name}").__doc__ or "").partition("\n")[0]
    assert summary.endswith(".")
    assert len(summary) <= 110


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_in_the_readme(name: str) -> None:
    """The README shows or names each command."""
    assert f"redisfuse {name}" in README


@pytest.mark.parametrize("option", mount_options(), ids=lambda option: option.opts[-1])
def test_each_option_of_mount_is_in_the_readme(option: click.Option) -> None:
    """The README's table has each option of `mount` with its default and its help text."""
    assert row(option) in README.splitlines()


def test_nothing_that_is_not_there_is_in_the_readme() -> None:
    """Each command, option of `mount` and environment variable that the README names exists."""
    code = "\n".join(block or word for block, word in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", README, re.DOTALL))
    named = set(re.findall(r"^(?:\$ )?redisfuse ([a-z]+)\b(?![:+])", code, re.MULTILINE))
    assert named
    assert named <= COMMANDS.keys()
    known = {
        spelling for command in [group, *COMMANDS.values()] for option in command.params for spelling in option.opts
    }
    options = set(re.findall(r"`(--[a-z][a-z-]+)", README)) - {"--help", "--version"}
    assert options <= known, options - known


def test_the_changelog_is_kept() -> None:
    """The changelog has a part for what is not released yet, in the format that it names."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    headings = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
