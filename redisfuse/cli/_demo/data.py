"""The sample data: a small shop, and key names that no filesystem allows. Pure."""

import base64
import hashlib
import json
from collections.abc import Iterator

DemoCommand = tuple[bytes | str | int | float, ...]

_PEOPLE = [
    ("Ada Lovelace", "ada@example.com", "team"),
    ("Grace Hopper", "grace@example.com", "team"),
    ("Alan Turing", "alan@example.org", "free"),
    ("Edsger Dijkstra", "edsger@example.net", "free"),
    ("Barbara Liskov", "barbara@example.com", "team"),
    ("Donald Knuth", "don@example.org", "trial"),
]
_PRODUCTS = [("mug", 1200), ("poster", 2500), ("sticker", 300), ("t-shirt", 1900)]

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

_WELCOME = """<!doctype html>
<title>Welcome to Acme</title>
<h1>Hello {{ name }}</h1>
<p>Your {{ plan }} plan is ready.</p>
"""

_FIRST_EVENT_MS = 1_780_308_000_000  # 2026-06-01T10:00:00Z


def generate_commands() -> Iterator[DemoCommand]:
    """Yield the commands that load the data into an empty server."""
    yield from _user_commands()
    yield from _session_commands()
    yield from _activity_commands()
    yield from _content_commands()
    yield from _odd_name_commands()


def _user_commands() -> Iterator[DemoCommand]:
    for number, (name, email, plan) in enumerate(_PEOPLE, 1001):
        since = f"2026-0{number % 5 + 1}-1{number % 9}"
        yield "HSET", f"user:{number}", "name", name, "email", email, "plan", plan, "since", since
        yield "SET", f"avatar:{number}.png", _PIXEL
    yield "SET", "user", len(_PEOPLE)  # a key beside the keys under it


def _session_commands() -> Iterator[DemoCommand]:
    for number, (name, _, _) in enumerate(_PEOPLE[:4], 1001):
        token = hashlib.sha256(name.encode()).hexdigest()[:16]
        session = {"user": number, "ip": f"192.0.2.{number % 200}", "cart": _PRODUCTS[number % 4][0]}
        yield "SET", f"session:{token}", json.dumps(session), "EX", 1800 + 60 * (number % 7)


def _activity_commands() -> Iterator[DemoCommand]:
    for number, (_, email, plan) in enumerate(_PEOPLE):
        template = "overdue" if plan == "trial" else "welcome"
        yield "RPUSH", "queue:email", json.dumps({"to": email, "template": template, "attempt": number % 2 + 1})
    for number in range(1001, 1004):
        yield "RPUSH", "queue:thumbnail", json.dumps({"avatar": number, "size": 64})
    for rank, (name, _, _) in enumerate(_PEOPLE):
        yield "ZADD", "leaderboard:2026-06", 9800 - 731 * rank, name
    for number, (product, cents) in enumerate(_PRODUCTS * 3):
        moment = _FIRST_EVENT_MS + 61_000 * number
        user = 1001 + number % len(_PEOPLE)
        yield "XADD", "events:orders", f"{moment}-0", "user", user, "product", product, "cents", cents
    for number in range(40):
        yield "PFADD", "visitors:2026-06-01", f"visitor-{number}"


def _content_commands() -> Iterator[DemoCommand]:
    yield "SET", "template:welcome.html", _WELCOME
    yield "SET", "template:overdue.txt", "Dear {{ name }},\nyour trial is over.\n"
    for product, cents in _PRODUCTS:
        yield "SET", f"product:{product}", json.dumps({"name": product, "cents": cents}, indent=2) + "\n"
    yield "SADD", "tag:sale", "mug", "sticker"
    yield "SADD", "tag:new", "poster", "t-shirt", "mug"
    for flag, state in (("dark-mode", "on"), ("new-checkout", "25%"), ("beta-search", "off")):
        yield "SET", f"feature:{flag}", f"{state}\n"
    yield "HSET", "config:site", "title", "Acme", "currency", "EUR", "retries", 3


def _odd_name_commands() -> Iterator[DemoCommand]:
    for key in (
        b"odd:a/b",
        b"odd:..",
        b"odd::double",
        b"odd:100%",
        b"odd:new\nline",
        b"odd:\x1b[31mred",
        b"odd:\xff\xfe not UTF-8",
        "odd:ünïcödé ☕".encode(),
        b"odd:long:" + b"very-" * 80 + b"long",
        b"",
    ):
        yield "SET", key, key + b"\n"
