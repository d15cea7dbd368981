"""Maps errors of sockets, of TLS and of redis-py to errors of redisfuse.

No message contains a password.
"""

import re

import redis

from redisfuse.client.address import Address, TlsOptions
from redisfuse.client.message_reader import InvalidMessageError
from redisfuse.client.reply_errors import map_redis_exception
from redisfuse.errors import (
    AccessError,
    ConnectionLostError,
    RedisFuseError,
    ReplyTooLargeError,
    ServerReplyError,
    UnavailableError,
    UsageError,
)

_REPLY_ERRORS = (
    redis.exceptions.ResponseError,
    redis.exceptions.AuthenticationError,
    redis.exceptions.BusyLoadingError,
)

_CLOSED = "the server closed the connection"
_RESET = "the server reset the connection"
_REJECTED = "the server rejected the TLS handshake"
_ENDED_BY_SERVER = (_CLOSED, _RESET, _REJECTED)

_REASONS = (
    ("Connection refused", "nothing listens there; check that the server is running, and the port"),
    ("No such file", "there is no such socket; check that the server is running, and the path"),
    ("Permission denied", "you have no permission to use that socket"),
    ("not known", "there is no such host name"),
    ("CERTIFICATE_REQUIRED", "the server demands a client certificate; use --tls-cert and --tls-key"),
    ("HANDSHAKE_FAILURE", _REJECTED),
    ("PROTOCOL_VERSION", "the server and this system have no common version of TLS"),
    ("WRONG_VERSION_NUMBER", "the server does not use TLS on this port; try redis:// instead of rediss://"),
    ("NO_CERTIFICATE_OR_CRL_FOUND", "the file of --tls-ca contains no certificate in PEM form"),
    ("KEY_VALUES_MISMATCH", "the key of --tls-key does not belong to the certificate of --tls-cert"),
    ("PEM lib", "--tls-cert needs a certificate in PEM form, and --tls-key its private key"),
    ("EOF occurred", _CLOSED),
    ("closed by server", _CLOSED),
    ("Broken pipe", _CLOSED),
    ("reset by peer", _RESET),
)
"""Part of an operating system's, OpenSSL's or redis-py's message, and the reason that is reported in its place."""

_UNVERIFIED = re.compile(r"certificate verify failed: (.+?)\.? \(_ssl")
_CERTIFICATE_ALERT = re.compile(r"_ALERT_\w*(?:CERTIFICATE|_CA)\w*\] \S+ alert (.+?) \(_ssl")
_CONNECTING = re.compile(r"^Error \S+ (?:connecting to|while \w+ (?:to|from)) \S+?(?:\.| ?:) (?=\S)")


def map_handshake_error(error: Exception, address: Address) -> RedisFuseError:
    """Map an error of connecting or authenticating.

    The message says in one line why, and what to do.
    """
    if isinstance(error, RedisFuseError):
        return error
    failure = map_connection_error(error, address)
    if isinstance(failure, ServerReplyError) and "DB index" in str(failure):
        return UsageError(f"the server at {address.endpoint} has no database {address.db}")
    if isinstance(failure, ServerReplyError) and "not allowed in cluster mode" in str(failure):
        return UsageError(f"{address.endpoint} is a node of a cluster, which has database 0 only, not {address.db}")
    if isinstance(failure, AccessError):
        action = "authentication with" if isinstance(error, redis.exceptions.AuthenticationError) else "access to"
        return AccessError(f"{action} {address.endpoint} failed: {failure}")
    if address.tls is not None and isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return UnavailableError(f"{failure}; or its port does not use TLS")
    return add_probable_cause(failure, address)


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
        return map_redis_exception(error, address.redact)
    if "max number of clients" in message:
        return UnavailableError(f"{address.endpoint} has reached its limit of clients (maxclients)")
    route = f" through {address.via[0]}:{address.via[1]}" if isinstance(address.via, tuple) else ""
    return UnavailableError(f"connecting to {address.endpoint}{route} failed: {_explain_failure(message, address)}")


def map_channel_error(error: Exception, address: Address, *, was_closed: bool) -> RedisFuseError:
    """Map the error with which an open connection ended.

    `was_closed`: this process had closed it before.
    """
    if isinstance(error, ReplyTooLargeError):
        return ReplyTooLargeError(
            f"{address.endpoint} sent a longer reply than was requested; the connection was closed"
        )
    if isinstance(error, RedisFuseError):
        return error
    if isinstance(error, InvalidMessageError):
        return UnavailableError(f"{address.endpoint} sent an invalid reply; the connection was closed")
    if was_closed:
        return ConnectionLostError(f"the connection to {address.endpoint} was closed")
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return map_connection_error(error, address)
    reason = _explain_failure(" ".join(str(error).split()), address)
    return ConnectionLostError(f"the connection to {address.endpoint} was lost: {reason}")


def add_probable_cause(error: RedisFuseError, address: Address) -> RedisFuseError:
    """Add what probably ended a connection before the server's first reply.

    Returns errors of other kinds unchanged.
    """
    if address.kind == "unix" or not str(error).endswith(_ENDED_BY_SERVER):
        return error
    if address.tls is None:
        cause = "it may require TLS: try rediss:// or --tls"
    elif address.tls.certfile is None:
        cause = "it may demand a client certificate: use --tls-cert and --tls-key"
    else:
        return error
    return type(error)(f"{error} before its first reply; {cause}")


def _explain_failure(message: str, address: Address) -> str:
    """Return the reason in a message of the system, of OpenSSL or of redis-py."""
    if unverified := _UNVERIFIED.search(message):
        return _explain_certificate(unverified[1], address)
    alert = _CERTIFICATE_ALERT.search(message)
    if alert and address.tls is not None and address.tls.certfile:
        return f"the server did not accept the client certificate of --tls-cert ({alert[1]})"
    for part, reason in _REASONS:
        if part.lower() in message.lower():
            return reason
    return _CONNECTING.sub("", message)


def _explain_certificate(reason: str, address: Address) -> str:
    """Return why the server's certificate was not accepted, for OpenSSL's reason."""
    if "certificate is not valid for" in reason:
        return f"the server's certificate is not valid for the name {address.host}; connect to a name that it contains"
    remedy = "" if "expired" in reason or "not yet valid" in reason else " (see --tls-ca)"
    return f"the server's certificate was not accepted: {reason}{remedy}"


def check_tls_files(tls: TlsOptions) -> None:
    """Raise UnavailableError if a file that TLS needs can't be read.

    OpenSSL's error does not name the file.
    """
    for option, path in (("--tls-ca", tls.ca_certs), ("--tls-cert", tls.certfile), ("--tls-key", tls.keyfile)):
        if path is not None:
            try:
                open(path, "rb").close()
            except OSError as error:
                raise UnavailableError(f"{path}, the file of {option}, can't be read: {error.strerror}") from None
