"""The command line: command selection, settings of a mount, defaults, passwords."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redisfuse.cli import _mount_helper, _redact
from redisfuse.cli.main import group, main
from redisfuse.cli.mount import build_config
from redisfuse.config import DEFAULTS, Config, MountOptions
from redisfuse.errors import UsageError
from redisfuse.text import TerminalFormatter, for_terminal

HOST = ["127.0.0.1", "6379", "/mnt"]

EVERY_OPTION = """
    --user u --db 3 --tls --tls-ca /ca --tls-cert /cert --tls-key /key --tls-insecure --timeout 1.5
    --write --journal --journal-file /j.db --no-conflict-check --no-added-newline --allow a:* --allow b --dump-limit 4
    --separator :: --prefix app: --new-files string --render-limit 1 --field-limit 2 --hash-limit 3
    --decode-input 1K --decode-output 2K --decode-depth 10 --decode-seconds 0.5
    --cache-memory 1MiB --index-memory 2M --connections 5 --rate 6 --scan-count 7
    --no-junk-filter --junk-file /p --junk *.x --keep y --show-junk --scratch-memory 8 --park-seconds 9
    --binding mfusepy --ask-on-open -o allow_other -o max_read=9 --daemon --log-file /l --debug
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the settings of the user who runs the tests."""
    for name in os.environ:
        if name.startswith("REDISFUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def settings(*words: str) -> Config:
    """Return the settings of a command line that must select `mount`."""
    root = group.make_context("redisfuse", list(words))
    words_left = [*getattr(root, "_protected_args", ()), *root.args]  # click 8 keeps a group's first word apart
    name, command, rest = group.resolve_command(root, words_left)
    assert name == "mount"
    assert command is not None
    return build_config(command.make_context(name, rest, parent=root))


def config_file(path: Path, text: str, mode: int = 0o600) -> Path:
    """Create a configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that was printed, which must be on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ["mount", *HOST],
        HOST,
        ["--write", "--journal", *HOST],
        ["-o", "allow_other", *HOST],
        [*HOST, "--debug"],
        ["--debug", "--separator", "/", *HOST],
        ["--separator", "status", *HOST],
        ["--", *HOST],
    ],
)
def test_mount_need_not_be_named(words: list[str]) -> None:
    """A command line whose first word is not a command is a mount, whatever options come first."""
    assert (settings(*words).target, settings(*words).port) == ("127.0.0.1", 6379)


def test_a_url_is_mounted() -> None:
    """The URL is used unchanged; the mount point is made absolute."""
    config = settings("redis://h:1/2", "here")
    assert (config.target, config.port, config.mountpoint) == ("redis://h:1/2", None, Path.cwd() / "here")


def test_defaults_are_those_of_config() -> None:
    """A mount without options has exactly the defaults of Config."""
    config = settings(*HOST)
    assert config == Config(target="127.0.0.1", port=6379, mountpoint=Path("/mnt"))
    assert {name: getattr(config, name) for name in DEFAULTS if name != "port"} == {
        name: default for name, default in DEFAULTS.items() if name != "port"
    }


def test_every_option_sets_its_field() -> None:
    """Each option of `mount` sets the field of Config."""
    config = settings(*EVERY_OPTION.split(), *HOST)
    assert config == Config(
        target="127.0.0.1",
        port=6379,
        mountpoint=Path("/mnt"),
        user="u",
        db=3,
        tls=True,
        tls_ca=Path("/ca"),
        tls_cert=Path("/cert"),
        tls_key=Path("/key"),
        tls_insecure=True,
        write=True,
        journal_file=Path("/j.db"),
        conflict_check=False,
        added_newline=False,
        allow=(b"a:*", b"b"),
        separator=b"::",
        prefix=b"app:",
        new_files="string",
        render_limit=1,
        field_limit=2,
        hash_limit=3,
        dump_limit=4,
        decode_input=1024,
        decode_output=2048,
        decode_depth=10,
        decode_seconds=0.5,
        cache_memory=1024**2,
        index_memory=2 * 1024**2,
        connections=5,
        rate=6,
        timeout=1.5,
        scan_count=7,
        junk_filter=False,
        junk_file=Path("/p"),
        junk=("*.x",),
        keep=("y",),
        show_junk=True,
        scratch_memory=8,
        park_seconds=9.0,
        binding="mfusepy",
        ask_on_open=True,
        options=MountOptions(allow_other=True, passthrough=(("max_read", "9"),)),
        daemon=True,
        log_file=Path("/l"),
        debug=True,
    )


def test_bytes_survive_the_command_line() -> None:
    """A prefix that is not UTF-8 is preserved byte for byte."""
    assert settings("--prefix", os.fsdecode(b"\xff\xfe:"), *HOST).prefix == b"\xff\xfe:"


def test_long_options_in_o() -> None:
    """-o accepts all long options, as fstab needs: flags and values, with dashes or underscores."""
    config = settings(
        "-o", "write,prefix=app:,render-limit=5,no_conflict_check,allow=a,uid=7,user,rw", "--allow", "b", *HOST
    )
    assert (config.write, config.prefix, config.render_limit, config.conflict_check) == (True, b"app:", 5, False)
    assert config.allow == (b"b", b"a")
    assert (config.options, config.user) == (MountOptions(uid=7), None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Usage"),
        (["--write"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "6379"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "port", "/mnt"], "not a port"),
        (["127.0.0.1", "65536", "/mnt"], "not a port"),
        (["redis://h"], "mount point is missing"),
        (["/run/redis.sock", "/mnt"], "unix:///run/redis.sock"),
        (["umuont", "/mnt"], "did you mean 'umount'"),
        (["mnt", "redis://h", "/mnt"], "did you mean 'mount'"),
        (["--journal", *HOST], "add --write"),
        (["-o", "journal", *HOST], "add --write"),
        (["-o", "ro", "--write", *HOST], "contradict"),
        (["-o", "write=1", *HOST], "takes no value"),
        (["-o", "prefix", *HOST], "needs a value"),
        (["-o", "render_limit=x", *HOST], "not a valid integer"),
        (["--daemon", "-f", *HOST], "contradict"),
        (["--separator", "", *HOST], "empty"),
        (["--cache-memory", "lots", *HOST], "512MiB"),
        (["--no-such-option", *HOST], "--no-such-option"),
        (["--password-file", "/nonexistent", *HOST], "can't read the password file"),
        (["--config", "/nonexistent", *HOST], "no such configuration"),
        (["umount"], "MOUNTPOINT"),
    ],
)
def test_usage_errors(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid command line exits with 2 and prints the reason, in one line except for a bare `redisfuse`."""
    assert main(words) == 2
    assert expected in (one_line(capsys) if words else capsys.readouterr().err)


def test_environment_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags override the environment, which overrides the configuration; a table overrides top-level settings."""
    path = config_file(
        tmp_path / "c.toml",
        'render-limit = 1\nfield_limit = 2\nhash_limit = 3\nprefix = "top:"\nallow = "one"\nwrite = true\n'
        '[mount]\nprefix = "app:"\ncache_memory = "1MiB"\njunk = ["a", "b"]\n',
    )
    monkeypatch.setenv("REDISFUSE_FIELD_LIMIT", "20")
    monkeypatch.setenv("REDISFUSE_HASH_LIMIT", "30")
    for words in (["--config", str(path), *HOST], ["--show-junk", "--config", str(path), *HOST]):
        config = (
            settings("--hash-limit", "300", *words)
            if words[0] != "--config"
            else settings(*words, "--hash-limit", "300")
        )
        assert (config.render_limit, config.field_limit, config.hash_limit) == (1, 20, 300)
        assert (config.prefix, config.cache_memory, config.junk, config.allow) == (
            b"app:",
            1024**2,
            ("a", "b"),
            (b"one",),
        )
        assert config.write


def test_read_only_over_a_writing_configuration(tmp_path: Path) -> None:
    """`-o ro` makes a mount read-only, whatever the configuration contains."""
    path = config_file(tmp_path / "c.toml", "write = true\n")
    assert not settings("--config", str(path), "-o", "ro", *HOST).write


def test_the_users_configuration(tmp_path: Path) -> None:
    """The file in the user's configuration folder is read by default."""
    config_file(tmp_path / "config" / "redisfuse" / "config.toml", "connections = 9\n")
    assert settings(*HOST).connections == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sperator = '/'", "'sperator'"),
        ("[mount]\nsperator = '/'", "'sperator'"),
        ("render_limit = ", "not TOML"),
        ("render_limit = 'x'", "render"),
        ("password = 5", "string"),
    ],
)
def test_bad_configuration(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid configuration is a usage error and is never ignored."""
    path = config_file(tmp_path / "c.toml", text)
    assert main(["--config", str(path), *HOST]) == 2
    assert expected in one_line(capsys)


@pytest.mark.parametrize("text", ["password = 'x'", "[mount]\njunk = 'redis://:x@h'", "[show]\nurl = 'redis://u:x@h'"])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_configuration_with_a_password_is_private(text: str, mode: int, tmp_path: Path) -> None:
    """A configuration file that contains a password and is readable by others is rejected."""
    path = config_file(tmp_path / "c.toml", text, mode)
    with pytest.raises(UsageError, match="others can read"):
        settings("--config", str(path), *HOST)


def test_sources_of_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag's file overrides the environment, which overrides the configuration; only the first line is used."""
    config = config_file(tmp_path / "c.toml", "password = 'of-config'\n")
    file = config_file(tmp_path / "p", "of-file\nsecond\n")
    assert settings(*HOST).password is None
    assert settings("--config", str(config), *HOST).password == "of-config"
    monkeypatch.setenv("REDISFUSE_PASSWORD", "of-environment")
    assert settings("--config", str(config), *HOST).password == "of-environment"
    assert settings("--config", str(config), "--password-file", str(file), *HOST).password == "of-file"


def test_a_password_file_is_private(tmp_path: Path) -> None:
    """A password file that others can read is rejected, with the remedy."""
    file = config_file(tmp_path / "p", "x\n", 0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        settings("--password-file", str(file), *HOST)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@host:1/0",
        "redis://user:s3cret@host",
        "rediss://user:s3%40cr:s3cret/et@host",
        "unix://:s3cret@/run/redis.sock",
        "redis+sentinel://:s3cret@a:1,b:2/service",
        "redis://host/0?password=s3cret&x=1",
    ],
)
def test_passwords_are_redacted(url: str) -> None:
    """The password of a URL is redacted at any position in a text."""
    assert "s3cret" not in _redact.redact_passwords(f"can't reach {url} (or {url}): down")
    assert "***" in _redact.redact_passwords(url)


def test_urls_without_password_are_unchanged() -> None:
    """URLs without a password are not changed."""
    text = "redis://host:6379/0 and unix:///run/redis.sock, rediss://user@host:1"
    assert _redact.redact_passwords(text) == text


def test_ps_shows_no_password() -> None:
    """The argument list of a running redisfuse has no password; the rest of it is unchanged."""
    script = (
        "import sys; from redisfuse.cli._redact import redact_argv; assert redact_argv();"
        "print(open('/proc/self/cmdline').read().replace('\\0', ' '), sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "redis://u:s3cret@h:1", "/mnt"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    shown, _, argument = done.stdout.strip().rpartition(" ")
    assert "s3cret" not in shown
    assert "redis://u:***@h:1 /mnt" in shown
    assert argument == "redis://u:s3cret@h:1"


def test_terminal_escapes_are_escaped() -> None:
    """Control characters, invalid UTF-8 and marks of writing direction are escaped."""
    assert for_terminal(b"a\x1b[31m\xff\xc2\x9b") == "a\\x1b[31m\\xff\\x9b"
    assert for_terminal(b"a\x1b[31m\xff\x00\n") == "a\\x1b[31m\\xff\\x00\\n"
    assert for_terminal("\x9b1m \u202e ünï ☕") == "\\x9b1m \\u202e ünï ☕"


def test_log_lines_are_printable() -> None:
    """Escape sequences of a key are escaped in the log; lines remain separate."""
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "key %s", ("\x1b[2J\nb",), None)
    assert TerminalFormatter("%(message)s").format(record) == "key \\x1b[2J\nb"


def test_errors_are_escaped_and_redacted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that quotes the command line contains neither escape sequences nor passwords."""
    assert main(["umount", str(tmp_path / "\x1b[31mred")]) == 1
    assert "\\x1b[31mred" in one_line(capsys)
    assert main(["redis://:s3cret@h:1", "/mnt", "--allow"]) == 2
    assert "s3cret" not in one_line(capsys)


def test_failures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that fails exits with 1 and prints one line."""
    for command in ("umount", "refresh"):
        assert main([command, str(tmp_path)]) == 1
        assert "mount" in one_line(capsys)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_commands_are_imported_only_when_used(option: str) -> None:
    """`--version` and `--help` import click and the command line's own modules: no command, no redis, no SQLite."""
    script = (
        "import sys; before = set(sys.modules); from redisfuse.cli.main import main; main(sys.argv[1:])\n"
        "print(*set(sys.modules) - before, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, option], capture_output=True, text=True, timeout=60, check=True
    )
    modules = set(done.stderr.split())
    assert not modules & {"asyncio", "socket", "sqlite3", "ssl"}
    assert {name for name in modules if name.partition(".")[0] not in {*sys.stdlib_module_names, "click"}} == {
        *("redisfuse", "redisfuse.errors", "redisfuse.text", "redisfuse.cli"),
        *("redisfuse.cli._redact", "redisfuse.cli._terminal", "redisfuse.cli.main"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["redis://h/0", "/mnt", "-o", "rw,prefix=a"],
            ["mount", "--daemon", "-o", "rw,prefix=a", "--", "redis://h/0", "/mnt"],
        ),
        (["redisfuse#redis://h", "/mnt", "-orw"], ["mount", "--daemon", "-o", "rw", "--", "redis://h", "/mnt"]),
        (["h:6379", "/mnt"], ["mount", "--daemon", "--", "redis://h:6379", "/mnt"]),
        (["/run/r.sock", "/mnt", "-s", "-n"], ["mount", "--daemon", "--", "unix:///run/r.sock", "/mnt"]),
        (["h", "/mnt", "-t", "fuse.redisfuse", "-N", "n"], ["mount", "--daemon", "--", "redis://h", "/mnt"]),
        (["h", "/mnt", "-sfv"], None),
    ],
)
def test_the_helper_for_fstab(arguments: list[str], words: list[str] | None) -> None:
    """The arguments of a mount helper are translated to the command line of a daemon."""
    assert _mount_helper.translate_arguments(arguments) == words


def test_the_helpers_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """The helper returns exit statuses of mount(8): 1 for a usage error, 0 for a fake mount."""
    assert _mount_helper.main(["h", "/mnt", "-o", "no_such=\x1b,prefix"]) == 1
    assert _mount_helper.main(["h", "/mnt", "-f"]) == 0
    assert "prefix" in one_line(capsys)
