"""Error replies of a server as redisfuse's errors.

The first word of an error reply is its kind (https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors).
redis-py strips that word for the kinds that it knows; here both shapes are understood.
"""

import redis

from redisfuse.errors import (
    AccessError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    RedisFuseError,
    ServerReplyError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
    WrongTypeError,
)

RETRYABLE_CODES = ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN")
"""Kinds that say "not now": worth asking again until the time-out. (BUSYKEY is another kind.)"""

_ERROR_CLASS_BY_CODE: dict[str, type[RedisFuseError]] = {
    **dict.fromkeys(RETRYABLE_CODES, TryAgainError),
    "NOAUTH": AccessError,
    "WRONGPASS": AccessError,
    "NOPERM": AccessError,
    "DENIED": AccessError,
    "READONLY": ReadOnlyError,
    "MISCONF": ReadOnlyError,
    "OOM": NoSpaceError,
    "WRONGTYPE": WrongTypeError,
    "MOVED": UnavailableError,
    "ASK": UnavailableError,
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
    "NOAUTH": "the server wants a password: give it in REDISFUSE_PASSWORD or with --password-file",
    "WRONGPASS": "the server did not accept the user name or password",
    "NOPERM": "the server's ACL does not allow this: {text}; `redisfuse doctor` says which rule is missing",
    "DENIED": "the server is in protected mode: it answers only on its own machine until it has a password",
    "READONLY": "the server takes no writes: it is a read-only replica",
    "MISCONF": "the server takes no writes: it can't save to its disk (MISCONF); its own log says why",
    "OOM": "the server is out of memory (maxmemory): {text}",
    "LOADING": "the server is still loading its data",
    "BUSY": "the server is busy with a script",
    "MASTERDOWN": "the replica has lost its master and is told not to answer (MASTERDOWN)",
    "CLUSTERDOWN": "the cluster is down",
    "TRYAGAIN": "the cluster is moving these keys",
    "MOVED": "this is one node of a cluster, and the key lives on another",
    "ASK": "this is one node of a cluster, and the key is moving to another",
}

_TOO_LARGE_MESSAGES = ("string exceeds maximum allowed size", "invalid bulk length", "exceeds proto-max-bulk-len")
_NO_SUCH_KEY_MESSAGE = "no such key"
_EXECABORT_CAUSE_PREFIX = "Transaction discarded because of: "


def split_redis_exception(error: Exception) -> tuple[str, str]:
    """The kind (`"WRONGTYPE"`, `"ERR"`...) and the rest of an error reply, as redis-py raised it."""
    text = str(error)
    if isinstance(error, redis.exceptions.AuthenticationError):
        return ("NOAUTH" if "required" in text.lower() else "WRONGPASS"), text
    for kind, name in _CODE_BY_REDIS_EXCEPTION:
        if isinstance(error, kind):
            return name, text
    first, _, rest = text.partition(" ")
    if first.isupper() and first.isalpha():
        return first, rest
    return "ERR", text


def map_error_line(line: str) -> RedisFuseError:
    """The error for a whole error reply, without its leading `-`."""
    first, _, rest = line.partition(" ")
    if first.isupper() and first.isalpha():
        return map_error_code(first, rest)
    return map_error_code("ERR", line)


def map_redis_exception(error: Exception) -> RedisFuseError:
    """The error for an error reply that redis-py raised, or put into an answer."""
    return map_error_code(*split_redis_exception(error))


def map_error_code(code: str, text: str) -> RedisFuseError:
    """The error for a reply of this kind. Its text is one line; `ServerReplyError` keeps the server's words."""
    text = " ".join(text.split())
    if code == "ERR":
        if any(words in text.lower() for words in _TOO_LARGE_MESSAGES):
            return TooLargeError(f"the server takes no value of this size: {text}")
        if text.lower() == _NO_SUCH_KEY_MESSAGE:
            return NotFoundError("no such key")
        if text.startswith("max number of clients"):
            return UnavailableError("the server has as many clients as it takes (maxclients)")
        return ServerReplyError(text)
    if code == "EXECABORT" and _EXECABORT_CAUSE_PREFIX in text:  # EXEC itself was refused: what counts is why
        return map_error_line(text.partition(_EXECABORT_CAUSE_PREFIX)[2])
    if code == "WRONGPASS" and "without any password" in text:
        return AccessError("a password was given, but the server has none for this user")
    advice = _MESSAGE_BY_CODE.get(code, f"{code} {{text}}")
    return _ERROR_CLASS_BY_CODE.get(code, ServerReplyError)(advice.replace("{text}", text))
