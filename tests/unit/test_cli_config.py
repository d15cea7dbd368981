"""Servers by name, misspelt names, `redisfuse config`, and completion of servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redisfuse.cli._toml_lines import find_setting_lines
from redisfuse.cli._where import describe_mounts, resolve_where
from redisfuse.cli.main import group, main
from redisfuse.cli.mount import build_config
from redisfuse.config import Config, MountOptions
from redisfuse.errors import UsageError

FILE = """\
timeout = 10
[mount]
separator = "/"
rate = 9
[server.prod]
url = "redis://reader@h/0"
mountpoint = "/mnt/prod"
prefix = "app:"
rate = 500
options = ["allow_other", "uid=7"]
junk = "*.x"
replicas = true
max-lag = 5
"""


@pytest.fixture(autouse=True)
def config_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of the user's configuration, which is the only source of settings."""
    for name in os.environ:
        if name.startswith("REDISFUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "redisfuse" / "config.toml"
    path.parent.mkdir(parents=True)
    write(path, FILE)
    return path


def write(path: Path, text: str) -> None:
    """Write a private file."""
    path.touch(mode=0o600)
    path.write_text(text)


def settings(*words: str) -> Config:
    """Return the settings of a command line that selects `mount`."""
    root = group.make_context("redisfuse", list(words))
    words_left = [*getattr(root, "_protected_args", ()), *root.args]
    name, command, rest = group.resolve_command(root, words_left)
    assert name == "mount"
    assert command is not None
    return build_config(command.make_context(name, rest, parent=root))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, tuple[str, str]]:
    """Return what `redisfuse config` prints: the value and the source of each option."""
    assert main(["config", *words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["option"] for row in rows}) == len(rows)
    return {row["option"]: (row["value"], row["source"]) for row in rows}


# -- servers by name ---------------------------------------------------------------------------------------------------


def test_a_server_by_name() -> None:
    """The section gives the URL, the mount point and any option; the rest is as for other mounts."""
    config = settings("prod")
    assert (config.target, config.port, config.mountpoint) == ("redis://reader@h/0", None, Path("/mnt/prod"))
    assert (config.prefix, config.rate, config.separator, config.timeout) == (b"app:", 500, b"/", 10.0)
    assert config.options == MountOptions(allow_other=True, uid=7)
    assert (config.junk, config.replicas, config.max_lag) == (("*.x",), True, 5.0)
    assert settings("prod", "/elsewhere").mountpoint == Path("/elsewhere")


def test_priority_over_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, `-o` and the environment have priority over the section, which has priority over [mount]."""
    assert settings("prod", "--rate", "1").rate == 1
    assert settings("prod", "-o", "rate=2,gid=3").rate == 2
    monkeypatch.setenv("REDISFUSE_RATE", "3")
    assert settings("prod").rate == 3
    assert settings("h", "6379", "/mnt").rate == 3
    monkeypatch.delenv("REDISFUSE_RATE")
    assert settings("h", "6379", "/mnt").rate == 9


def test_a_host_with_the_name_of_a_server() -> None:
    """HOST PORT MOUNTPOINT is an address, whatever the names of servers are."""
    config = settings("prod", "6379", "/mnt")
    assert (config.target, config.port, config.prefix) == ("prod", 6379, b"")


def test_passwords_of_servers(config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password or the file of a section has priority over the top of the file, the environment over both."""
    write(tmp_path / "p", "of-file\n")
    write(
        config_path,
        f'password = "top"\n[server.a]\nurl = "redis://a"\npassword = "of-a"\n'
        f'[server.b]\nurl = "redis://b"\npassword-file = "{tmp_path}/p"\n[server.c]\nurl = "redis://c"\n',
    )
    assert [settings(name, "/mnt").password for name in "abc"] == ["of-a", "of-file", "top"]
    assert settings("b", "/mnt").password_file == tmp_path / "p"
    monkeypatch.setenv("REDISFUSE_PASSWORD", "of-environment")
    assert {settings(name, "/mnt").password for name in "abc"} == {"of-environment"}


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ('[server.x]\nurl = "redis://h"\n', ["x"], ":1: [server.x] has no mountpoint"),
        ("[server.x]\nprefix = 'a'\n", ["x"], ":1: [server.x] needs a URL"),
        ('[server.find]\nurl = "redis://h"\n', ["config"], "is the name of a command"),
        ('[server."a/b"]\nurl = "redis://h"\n', ["config"], "is not a name"),
        ('[server]\nurl = "redis://h"\n', ["config"], "[server.NAME]"),
        ('[server.x]\nurl = "redis://h"\nreplica = true\n', ["x"], ":3: unknown setting 'replica' in [server.x]"),
        ('[server.x]\nurl = "redis://h"\n\nrate = "fast"\n', ["x", "/mnt"], ":4: rate: 'fast' is not a valid integer"),
        ('[server.x]\nurl = "redis://h"\npassword = "a"\npassword_file = "/b"\n', ["config"], "remove one"),
        ('[server.prod]\nurl = "redis://h"\n', ["prdo"], "did you mean 'prod'?"),
    ],
)
def test_wrong_servers(
    text: str, words: list[str], expected: str, config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A section that can't be used, and a name without a section, are usage errors."""
    write(config_path, text)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_two_servers_in_one_command(config_path: Path) -> None:
    """The settings of a server, its password above all, are not used for the next one or for a URL."""
    write(
        config_path,
        '[server.a]\nurl = "redis://a"\npassword = "of-a"\nprefix = "a:"\nallow = "a:*"\nreplicas = true\n'
        '[server.b]\nurl = "redis://b"\nrate = 7\n',
    )
    root = group.make_context("redisfuse", ["find"])
    name, command, rest = group.resolve_command(root, ["find"])
    assert command is not None
    context = command.make_context(name, rest, parent=root)
    one, other, same, url = (resolve_where(context, [word]) for word in ("a", "b", "a#x:", "redis://a"))
    assert (one.address.password, one.scope.prefix, one.allow, one.replicas) == ("of-a", b"a:", (b"a:*",), True)
    assert (other.address.password, other.scope.prefix, other.allow, other.replicas) == (None, b"", (), False)
    assert (one.limits.rate, other.limits.rate) == (0, 7)
    assert (same.address.password, same.scope.prefix) == ("of-a", b"x:")
    assert (url.address.password, url.scope.prefix, url.limits.rate, url.allow) == (None, b"", 0, ())


# -- misspelt names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("\nrender_limt = 5\n", 2, "'render_limt'; did you mean 'render_limit'?"),
        ("[mount]\n# x\nrender-limt = 5\n", 3, "in [mount]; did you mean 'render_limit'?"),
        ("rate = 1\n[mout]\nrate = 5\n", 2, "'mout'; did you mean 'mount'?"),
        ('junk = """\nrate\n"""\n\ntimeot = 5\n', 5, "did you mean 'timeout'?"),
        ("mount.timeot = 5\n", 1, "in [mount]; did you mean 'timeout'?"),
        ("\nmount = { timeot = 5 }\n", 2, "in [mount]; did you mean 'timeout'?"),
    ],
)
def test_misspelt_settings(
    text: str, line: int, expected: str, config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the file, the line, and the nearest setting."""
    write(config_path, text)
    assert main(["mount", "h", "1", "/mnt"]) == 2
    assert capsys.readouterr().err.startswith(f"redisfuse: {config_path}:{line}: unknown setting ")
    with pytest.raises(UsageError) as caught:
        settings("h", "1", "/mnt")
    assert expected in str(caught.value)


def test_misspelt_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable that is no option of any command is an error; those of Kubernetes for a service are ignored."""
    monkeypatch.setenv("REDISFUSE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("REDISFUSE_PORT_6379_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("REDISFUSE_LIMIT", "5")  # of `redisfuse find`
    assert main(["config"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("REDISFUSE_TIMOUT", "5")
    assert main(["config"]) == 2
    assert "REDISFUSE_TIMOUT is not an option; did you mean 'REDISFUSE_TIMEOUT'?" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["timeot = 5\n", "no TOML"])
def test_commands_without_settings_work(
    text: str, config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong configuration does not prevent unmounting."""
    write(config_path, text)
    assert main(["umount", str(tmp_path)]) == 1
    assert "is not mounted" in capsys.readouterr().err
    assert main(["find", "redis://h"]) == 2


def test_lines_of_settings() -> None:
    """Comments, quoted names, dotted names, arrays of several lines and long strings are understood."""
    text = "# a = 1\n'b c' = 2\n[x.\"y\"]  # z\nd.e = [\n  1,\n]\nf = '''\ng = 1\n'''\nh = 1\n"
    assert find_setting_lines(text) == {
        ("b c",): 2,
        ("x",): 3,
        ("x", "y"): 3,
        ("x", "y", "d"): 4,
        ("x", "y", "d", "e"): 4,
        ("x", "y", "f"): 7,
        ("x", "y", "h"): 10,
    }


# -- redisfuse config --------------------------------------------------------------------------------------------------


def test_sources_of_settings(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each value has its source: the default, a line, a variable, or the command line."""
    monkeypatch.setenv("REDISFUSE_CONNECTIONS", "2")
    rows = shown(capsys, "--scan-count", "5", "-o", "write")
    assert rows["timeout"] == ("10", f"{config_path}:1")
    assert rows["separator"] == ("/", f"{config_path}:3")
    assert rows["connections"] == ("2", "REDISFUSE_CONNECTIONS in the environment")
    assert rows["scan_count"] == ("5", "command line")
    assert rows["write"] == ("true", "command line")
    assert rows["cache_memory"] == ("64MiB", "default")
    assert rows["server.prod.url"] == ("redis://reader@h/0", f"{config_path}:6")


def test_settings_of_a_server(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the words of a mount, the settings are those that it would have, checked alike."""
    rows = shown(capsys, "prod", "--prefix", "b:")
    assert rows["server"] == ("redis://reader@h/0", f"{config_path}:6")
    assert rows["mountpoint"] == ("/mnt/prod", f"{config_path}:7")
    assert rows["rate"] == ("500", f"{config_path}:9")
    assert rows["prefix"] == ("b:", "command line")
    assert main(["config", "prod", "--write"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_config_shows_no_password(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passwords are hidden wherever they are, with their source."""
    write(
        config_path,
        'password = "s3cret"\n[show]\nurl = "redis://:s3cret@h"\n'
        '[server.a]\nurl = "redis://u:s3cret@h"\n[server.b]\nurl = "redis://h"\npassword = "s3cret"\n',
    )
    expected = {(): f"{config_path}:1", ("a", "/mnt"): f"{config_path}:5", ("b", "/mnt"): f"{config_path}:8"}
    for words, source in expected.items():
        assert main(["config", *words]) == 0
        output = capsys.readouterr().out
        assert "s3cret" not in output
        assert f"password\t***\t{source}\n" in output
    monkeypatch.setenv("REDISFUSE_PASSWORD", "s3cret")
    assert shown(capsys)["password"] == ("***", "REDISFUSE_PASSWORD in the environment")


@pytest.mark.parametrize(
    ("variables", "words", "expected"),
    [
        ({"REDISFUSE_RATE": "x"}, ["find", "redis://h"], "REDISFUSE_RATE in the environment: 'x' is not"),
        ({"REDISFUSE_DEBUG": "x"}, ["find", "redis://h"], "REDISFUSE_DEBUG in the environment: 'x' is not"),
        ({"REDISFUSE_RATE": "x"}, ["find", "redis://h", "--rate", "y"], "Invalid value for '--rate': 'y' is not"),
        ({"REDISFUSE_CLUSTER_MAP": "x"}, ["find", "redis://h"], "(REDISFUSE_CLUSTER_MAP in the environment)"),
        ({"REDISFUSE_WRITE": "1"}, ["--replicas", "redis://h", "/mnt"], "(REDISFUSE_WRITE in the environment)"),
        ({}, ["redis://h", "/mnt"], "config.toml:2: rate: 'fast' is not"),
        ({}, ["find", "redis://h"], "config.toml:4: timeout: 'long' is not"),
        ({}, ["junk", "scan", "redis://h"], "config.toml:6: separator: 5 is not a string in quotes"),
    ],
)
def test_a_bad_value_names_its_source(
    variables: dict[str, str],
    words: list[str],
    expected: str,
    config_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error names the variable, or the file and the line, unless the command line has the value."""
    if not variables:
        write(config_path, '[mount]\nrate = "fast"\n[find]\ntimeout = "long"\n[junk.scan]\nseparator = 5\n')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert expected in capsys.readouterr().err


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pro"], ["plain,prod"]),
        (["mount", "pr"], ["plain,prod"]),
        (["find", "pr"], ["plain,prod", "file,pr"]),
        (["grep", "x", "pr"], ["plain,prod", "file,pr"]),
        (["dump", "pr"], ["plain,prod", "file,pr"]),
        (["load", "x.jsonl", "pr"], ["plain,prod", "file,pr"]),
        (["diff", "--live", "prod", "pr"], ["plain,prod", "file,pr"]),
        (["prod", "/m"], ["dir,/m"]),
    ],
)
def test_completion_offers_servers(words: list[str], expected: list[str]) -> None:
    """Servers are offered as the first word, to `mount`, and where a command takes WHERE."""
    environment = os.environ | {
        "_REDISFUSE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["redisfuse", *words]),
        "COMP_CWORD": str(len(words)),
    }
    script = "from redisfuse.cli.main import group; group(prog_name='redisfuse')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == expected


def test_an_error_names_few_mounts() -> None:
    """A machine can have hundreds of them."""
    assert describe_mounts([]) == "nothing is mounted"
    assert describe_mounts(["/a", "/b", "/c"]) == "mounted: /a, /b, /c"
    assert describe_mounts([f"/{number}" for number in range(12)]).startswith("mounted: /0, /1, /2 and 9 more")
