"""Parsing of the reply to INFO. Pure."""

_MAX_DIGITS = 19  # of a number; longer ones are invalid


def split_info(info: bytes | str) -> dict[bytes, bytes]:
    """Return the values of INFO, by name; the text is a str in RESP3."""
    lines = (info if isinstance(info, bytes) else info.encode()).splitlines()
    return {name: value for name, colon, value in (line.partition(b":") for line in lines) if colon}


def parse_number(text: bytes) -> int:
    """Return the number that a value is; 0 if it is none."""
    return int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else 0


def parse_numbers(text: bytes) -> dict[bytes, int]:
    """Return the numbers of a value like `keys=3,expires=1`, by name."""
    pairs = (part.partition(b"=") for part in text.split(b","))
    return {name: parse_number(value) for name, _, value in pairs}
