"""Error replies of a server as errors of redisfuse.

The first word of an error reply is its code
(https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors). redis-py strips the codes that it knows;
both forms are understood here.
"""

from collections.abc import Callable

import redis

from redisfuse.errors import (
    AccessError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    RedirectedError,
    RedisFuseError,
    ServerReplyError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
    WrongTypeError,
)

_RETRYABLE_CODES = ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN")
"""Codes of temporary errors: the command is retried until the time-out. (BUSYKEY is another code.)"""

PASSWORD_REQUIRED_MESSAGE = "the server requires a password: set REDISFUSE_PASSWORD or use --password-file"

_ERROR_CLASS_BY_CODE: dict[str, type[RedisFuseError]] = {
    **dict.fromkeys(_RETRYABLE_CODES, TryAgainError),
    "NOAUTH": AccessError,
    "WRONGPASS": AccessError,
    "NOPERM": AccessError,
    "DENIED": AccessError,
    "READONLY": ReadOnlyError,
    "MISCONF": ReadOnlyError,
    "OOM": NoSpaceError,
    "WRONGTYPE": WrongTypeError,
    "MOVED": RedirectedError,
    "ASK": RedirectedError,
}

_CODE_BY_REDIS_EXCEPTION: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.BusyLoadingError, "LOADING"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
    (redis.exceptions.MovedError, "MOVED"),
    (redis.exceptions.AskError, "ASK"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ExecAbortError, "EXECABORT"),
    (redis.exceptions.NoScriptError, "NOSCRIPT"),
)

_MESSAGE_BY_CODE = {
    "NOAUTH": PASSWORD_REQUIRED_MESSAGE,
    "WRONGPASS": "wrong user name or password (WRONGPASS); check --user and --password-file or REDISFUSE_PASSWORD",
    "NOPERM": "the server's ACL does not allow this: {text}; `redisfuse doctor` names the missing rule",
    "DENIED": "the server is in protected mode: it accepts only local connections until it has a password",
    "READONLY": "the server is a read-only replica: it rejects writes",
    "MISCONF": "the server rejects writes because it can't save to disk (MISCONF); see its log for the reason",
    "OOM": "the server is out of memory (maxmemory): {text}",
    "LOADING": "the server is still loading its data (LOADING); try again later",
    "BUSY": "the server is busy running a script (BUSY); try again later",
    "MASTERDOWN": "the replica has lost its master and is configured not to serve stale data (MASTERDOWN)",
    "CLUSTERDOWN": "the cluster is down (CLUSTERDOWN)",
    "TRYAGAIN": "the cluster is moving these keys (TRYAGAIN); try again later",
    "MOVED": "this server is one node of a cluster, and the key is on another node (MOVED)",
    "ASK": "this server is one node of a cluster, and the key is moving to another node (ASK)",
}

_TOO_LARGE_MESSAGES = ("string exceeds maximum allowed size", "invalid bulk length", "exceeds proto-max-bulk-len")
_NO_SUCH_KEY_MESSAGE = "no such key"
_MAX_SLOT_DIGITS = 5
_EXECABORT_CAUSE_PREFIX = "Transaction discarded because of: "


def _split_redis_exception(error: Exception) -> tuple[str, str]:
    """Split an error reply that redis-py raised into its code and its text.

    The code is `"WRONGTYPE"`, `"ERR"`...
    """
    text = str(error)
    if isinstance(error, redis.exceptions.AuthenticationError):
        return ("NOAUTH" if "required" in text.lower() else "WRONGPASS"), text
    for exception_class, code in _CODE_BY_REDIS_EXCEPTION:
        if isinstance(error, exception_class):
            return code, text
    return _split_error_line(text)


def _split_error_line(line: str) -> tuple[str, str]:
    first, _, rest = line.partition(" ")
    return (first, rest) if first.isupper() and first.isalpha() else ("ERR", line)


def map_error_line(line: str) -> RedisFuseError:
    """Map a whole error reply, without its leading `-`."""
    return map_error_code(*_split_error_line(line))


def map_redis_exception(error: Exception, redact: Callable[[str], str]) -> RedisFuseError:
    """Map an error reply that redis-py raised, or returned among its replies.

    `redact` removes secrets from the server's words.
    """
    return map_error_code(*_split_redis_exception(error), redact)


def map_error_code(code: str, text: str, redact: Callable[[str], str] = str) -> RedisFuseError:
    """Map an error reply, given as its code and text, as `_map_reply` does."""
    error = _map_reply(code, text, redact)
    error.reply_code = code
    return error


def _map_reply(code: str, text: str, redact: Callable[[str], str]) -> RedisFuseError:
    """Map an error reply, given as its code and text.

    The message is one line; that of a `ServerReplyError` is the server's own text.
    """
    text = " ".join(text.split())
    shown = redact(text)
    if code == "ERR":
        if any(part in text.lower() for part in _TOO_LARGE_MESSAGES):
            return TooLargeError(f"the server rejects a value of this size: {shown}")
        if text.lower() == _NO_SUCH_KEY_MESSAGE:
            return NotFoundError("no such key")
        if text.startswith("max number of clients"):
            return UnavailableError("the server has reached its limit of clients (maxclients)")
        return ServerReplyError(shown)
    if code == "EXECABORT" and _EXECABORT_CAUSE_PREFIX in text:  # EXEC itself was refused; only the cause matters
        return map_error_code(*_split_error_line(text.partition(_EXECABORT_CAUSE_PREFIX)[2]), redact)
    if code == "WRONGPASS" and "without any password" in text:
        return AccessError("a password was given, but the server has none for this user; omit the password")
    message = _MESSAGE_BY_CODE.get(code, f"{redact(code)} {{text}}")
    if code in ("MOVED", "ASK"):
        return _build_redirection(message, text)
    return _ERROR_CLASS_BY_CODE.get(code, ServerReplyError)(message.replace("{text}", shown))


def _build_redirection(message: str, text: str) -> RedirectedError:
    """Return the error for a redirection, whose text is `SLOT HOST:PORT`."""
    slot, _, target = text.partition(" ")
    error = RedirectedError(message)
    error.slot = int(slot) if slot.isdigit() and len(slot) <= _MAX_SLOT_DIGITS else -1
    error.target = target
    return error
