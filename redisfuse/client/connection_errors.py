"""Maps errors of sockets and of redis-py to errors of redisfuse.

No message contains a password.
"""

import redis

from redisfuse.client.address import Address
from redisfuse.client.reply_errors import map_redis_exception
from redisfuse.errors import AccessError, RedisFuseError, ServerReplyError, UnavailableError, UsageError

_REPLY_ERRORS = (
    redis.exceptions.ResponseError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.BusyLoadingError,
)

_REASONS = (
    ("Connection refused", "nothing listens there; check that the server is running, and the port"),
    ("No such file", "there is no such socket; check that the server is running, and the path"),
    ("Permission denied", "you have no permission to use that socket"),
    ("Name or service not known", "there is no such host name"),
    ("not known", "there is no such host name"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate was not accepted (see --tls-ca)"),
    ("WRONG_VERSION_NUMBER", "the server does not use TLS on this port; try redis:// instead of rediss://"),
    ("closed by server", "the server closed the connection; if it requires TLS, use rediss://"),
)
"""Part of an operating system's, OpenSSL's or redis-py's message, and the reason that is reported in its place."""


def map_handshake_error(error: Exception, address: Address) -> RedisFuseError:
    """Map an error of connecting or authenticating.

    The message says in one line why, and what to do.
    """
    if isinstance(error, RedisFuseError):
        return error
    failure = map_connection_error(error, address)
    if isinstance(failure, ServerReplyError) and "DB index" in str(failure):
        return UsageError(f"the server at {address.endpoint} has no database {address.db}")
    if isinstance(failure, AccessError):
        action = "authentication with" if isinstance(error, redis.exceptions.AuthenticationError) else "access to"
        return AccessError(f"{action} {address.endpoint} failed: {failure}")
    return failure


def map_connection_error(error: Exception, address: Address) -> RedisFuseError:
    """Map an error of redis-py or of a socket."""
    if isinstance(error, RedisFuseError):
        return error
    message = " ".join(address.redact(str(error)).split())
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return UnavailableError(
            f"{address.endpoint} did not reply in time: it is down, hung or too slow (see --timeout)"
        )
    if isinstance(error, redis.exceptions.InvalidResponse):
        return UnavailableError(f"{address.endpoint} does not speak the Redis protocol; check the address")
    if isinstance(error, _REPLY_ERRORS):
        mapped = map_redis_exception(error)
        return type(mapped)(address.redact(str(mapped)))
    if "max number of clients" in message:
        return UnavailableError(f"{address.endpoint} has reached its limit of clients (maxclients)")
    return UnavailableError(f"connecting to {address.endpoint} failed: {_explain_failure(message)}")


def _explain_failure(message: str) -> str:
    for part, reason in _REASONS:
        if part.lower() in message.lower():
            return reason
    return message
