"""The command line: which command is meant, what a mount is asked to be, where defaults and passwords come from."""

import logging
import os
import resource
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
    --write --journal --journal-file /j.db --no-conflict-check --allow a:* --allow b --dump-limit 4
    --separator :: --prefix app: --new-files string --render-limit 1 --field-limit 2 --hash-limit 3
    --cache-memory 1MiB --index-memory 2M --connections 5 --rate 6 --scan-count 7
    --no-junk-filter --junk-file /p --junk *.x --keep y --show-junk --scratch-memory 8 --park-seconds 9
    --binding mfusepy --ask-on-open -o allow_other -o max_read=9 --daemon --log-file /l --debug
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests takes part."""
    for name in os.environ:
        if name.startswith("REDISFUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def settings(*words: str) -> Config:
    """What a command line, which must mean `mount`, asks for."""
    root = group.make_context("redisfuse", list(words))
    words_left = [*getattr(root, "_protected_args", ()), *root.args]  # click 8 keeps a group's first word apart
    name, command, rest = group.resolve_command(root, words_left)
    assert name == "mount"
    assert command is not None
    return build_config(command.make_context(name, rest, parent=root))


def config_file(path: Path, text: str, mode: int = 0o600) -> Path:
    """A configuration file with these contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was printed, on standard error."""
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
    """A command line whose first word is no command is a mount, whatever options come first."""
    assert (settings(*words).target, settings(*words).port) == ("127.0.0.1", 6379)


def test_a_url_is_mounted() -> None:
    """URL MOUNTPOINT is taken as it is, the mount point made absolute."""
    asked = settings("redis://h:1/2", "here")
    assert (asked.target, asked.port, asked.mountpoint) == ("redis://h:1/2", None, Path.cwd() / "here")


def test_defaults_are_those_of_settings() -> None:
    """A bare mount has exactly the defaults that Settings declares."""
    asked = settings(*HOST)
    assert asked == Config(target="127.0.0.1", port=6379, mountpoint=Path("/mnt"))
    assert {name: getattr(asked, name) for name in DEFAULTS if name != "port"} == {
        name: default for name, default in DEFAULTS.items() if name != "port"
    }


def test_every_option_arrives() -> None:
    """Each option of `mount` sets its setting."""
    asked = settings(*EVERY_OPTION.split(), *HOST)
    assert asked == Config(
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
        allow=(b"a:*", b"b"),
        separator=b"::",
        prefix=b"app:",
        new_files="string",
        render_limit=1,
        field_limit=2,
        hash_limit=3,
        dump_limit=4,
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
    """A prefix that is not UTF-8 arrives byte for byte."""
    assert settings("--prefix", os.fsdecode(b"\xff\xfe:"), *HOST).prefix == b"\xff\xfe:"


def test_long_options_in_o() -> None:
    """What fstab can only say with -o is understood there: flags, values, and dashes or underscores."""
    asked = settings(
        "-o", "write,prefix=app:,render-limit=5,no_conflict_check,allow=a,uid=7,user,rw", "--allow", "b", *HOST
    )
    assert (asked.write, asked.prefix, asked.render_limit, asked.conflict_check) == (True, b"app:", 5, False)
    assert asked.allow == (b"b", b"a")
    assert (asked.options, asked.user) == (MountOptions(uid=7), None)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "Usage"),
        (["--write"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "/mnt"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "port", "/mnt"], "no port"),
        (["127.0.0.1", "65536", "/mnt"], "no port"),
        (["redis://h"], "mount point is missing"),
        (["/run/redis.sock", "/mnt"], "unix:///run/redis.sock"),
        (["umuont", "/mnt"], "did you mean 'umount'"),
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
        (["--password-file", "/nonexistent", *HOST], "can't be read"),
        (["--config", "/nonexistent", *HOST], "no such configuration"),
        (["umount"], "MOUNTPOINT"),
    ],
)
def test_usage_errors(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that makes no sense ends with status 2 and says why, in one line but for a bare `redisfuse`."""
    assert main(words) == 2
    assert what in (one_line(capsys) if words else capsys.readouterr().err)


def test_environment_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the environment, the environment over the configuration, a command's table over the file's top."""
    path = config_file(
        tmp_path / "c.toml",
        'render-limit = 1\nfield_limit = 2\nhash_limit = 3\nprefix = "top:"\nallow = "one"\nwrite = true\n'
        '[mount]\nprefix = "app:"\ncache_memory = "1MiB"\njunk = ["a", "b"]\n',
    )
    monkeypatch.setenv("REDISFUSE_FIELD_LIMIT", "20")
    monkeypatch.setenv("REDISFUSE_HASH_LIMIT", "30")
    for words in (["--config", str(path), *HOST], ["--show-junk", "--config", str(path), *HOST]):
        asked = (
            settings("--hash-limit", "300", *words)
            if words[0] != "--config"
            else settings(*words, "--hash-limit", "300")
        )
        assert (asked.render_limit, asked.field_limit, asked.hash_limit) == (1, 20, 300)
        assert (asked.prefix, asked.cache_memory, asked.junk, asked.allow) == (b"app:", 1024**2, ("a", "b"), (b"one",))
        assert asked.write


def test_read_only_over_a_writing_configuration(tmp_path: Path) -> None:
    """`-o ro` makes a mount read-only whatever the configuration says."""
    path = config_file(tmp_path / "c.toml", "write = true\n")
    assert not settings("--config", str(path), "-o", "ro", *HOST).write


def test_the_users_configuration(tmp_path: Path) -> None:
    """The file in the user's configuration folder is read without being named."""
    config_file(tmp_path / "config" / "redisfuse" / "config.toml", "connections = 9\n")
    assert settings(*HOST).connections == 9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sperator = '/'", "'sperator'"),
        ("[mount]\nsperator = '/'", "'sperator'"),
        ("render_limit = ", "not TOML"),
        ("render_limit = 'x'", "render"),
        ("password = 5", "string"),
    ],
)
def test_bad_configuration(text: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration that can't be understood is a usage error, never ignored."""
    path = config_file(tmp_path / "c.toml", text)
    assert main(["--config", str(path), *HOST]) == 2
    assert what in one_line(capsys)


@pytest.mark.parametrize("text", ["password = 'x'", "[mount]\njunk = 'redis://:x@h'", "[show]\nurl = 'redis://u:x@h'"])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_configuration_with_a_password_is_private(text: str, mode: int, tmp_path: Path) -> None:
    """A configuration file that holds a password and that others can read is refused."""
    path = config_file(tmp_path / "c.toml", text, mode)
    with pytest.raises(UsageError, match="others can read"):
        settings("--config", str(path), *HOST)


def test_where_passwords_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag's file wins over the environment, the environment over the configuration; the file's first line counts."""
    config = config_file(tmp_path / "c.toml", "password = 'of-config'\n")
    file = config_file(tmp_path / "p", "of-file\nsecond\n")
    assert settings(*HOST).password is None
    assert settings("--config", str(config), *HOST).password == "of-config"
    monkeypatch.setenv("REDISFUSE_PASSWORD", "of-environment")
    assert settings("--config", str(config), *HOST).password == "of-environment"
    assert settings("--config", str(config), "--password-file", str(file), *HOST).password == "of-file"


def test_a_password_file_is_private(tmp_path: Path) -> None:
    """A password file that others can read is refused, and the way out is said."""
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
def test_passwords_are_masked(url: str) -> None:
    """A URL's password is masked wherever in a text it stands."""
    assert "s3cret" not in _redact.redact_passwords(f"can't reach {url} (or {url}): down")
    assert "***" in _redact.redact_passwords(url)


def test_masking_leaves_other_urls_alone() -> None:
    """URLs without a password stay as they are."""
    text = "redis://host:6379/0 and unix:///run/redis.sock, rediss://user@host:1"
    assert _redact.redact_passwords(text) == text


def test_ps_shows_no_password() -> None:
    """The argument list of a running redisfuse does not show the URL's password, and the rest of it stays."""
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
    shown, _, kept = done.stdout.strip().rpartition(" ")
    assert "s3cret" not in shown
    assert "redis://u:***@h:1 /mnt" in shown
    assert kept == "redis://u:s3cret@h:1"


def test_terminal_escapes_are_shown() -> None:
    """No control character, byte that is no text, or mark that turns writing round reaches a terminal."""
    assert for_terminal(b"a\x1b[31m\xff\xc2\x9b") == "a\\x1b[31m\\xff\\x9b"
    assert for_terminal(b"a\x1b[31m\xff\x00\n") == "a\\x1b[31m\\xff\\x00\\n"
    assert for_terminal("\x9b1m \u202e ünï ☕") == "\\x9b1m \\u202e ünï ☕"


def test_log_lines_are_printable() -> None:
    """A key's escape sequences don't reach a terminal by way of the log, and each line stays a line."""
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "key %s", ("\x1b[2J\nb",), None)
    assert TerminalFormatter("%(message)s").format(record) == "key \\x1b[2J\nb"


def test_errors_are_escaped_and_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that quotes what the user said shows neither escape sequences nor passwords."""
    assert main(["umount", str(tmp_path / "\x1b[31mred")]) == 1
    assert "\\x1b[31mred" in one_line(capsys)
    assert main(["redis://:s3cret@h:1", "/mnt", "--allow"]) == 2
    assert "s3cret" not in one_line(capsys)


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that can't be done ends with status 1 and one line."""
    for command in ("umount", "refresh"):
        assert main([command, str(tmp_path)]) == 1
        assert "mount" in one_line(capsys)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_quick_start(option: str) -> None:
    """`redisfuse --version` and `--help` take at most 0.15 s of processor time more than Python itself."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def best(*words: str) -> float:
        times = []
        for _ in range(10):
            before = used()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, timeout=20, check=True)
            times.append(used() - before)
        return min(times)

    assert best("-m", "redisfuse.cli.main", option) - best("-c", "pass") < 0.15


def test_commands_are_imported_only_when_used() -> None:
    """Showing the help of all commands imports none of them, and neither redis nor SQLite."""
    script = (
        "import sys; from redisfuse.cli.main import main; main(['--help'])\n"
        "heavy = {'redis', 'sqlite3', 'sqlite_utils', 'rich', 'redisfuse.cli.mount', 'redisfuse.config'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=20, check=True)


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
    """mount(8)'s way to call a helper becomes a daemon's command line."""
    assert _mount_helper.translate_arguments(arguments) == words


def test_the_helpers_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """The helper answers with mount(8)'s exit statuses: 1 for usage, 0 for a fake mount."""
    assert _mount_helper.main(["h", "/mnt", "-o", "no_such=\x1b,prefix"]) == 1
    assert _mount_helper.main(["h", "/mnt", "-f"]) == 0
    assert "prefix" in one_line(capsys)
