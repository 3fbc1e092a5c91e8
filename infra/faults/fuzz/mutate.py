"""Changes bytes as fuzzers do: bits, numbers at their bounds, pieces taken out, doubled and mixed, and JSON by its structure. Everything
follows from the random generator that is given, so that a run can be run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

MAX_BYTES = 1 << 21  # above the largest bound that a decoder of records checks
MAX_JSON_BYTES = 64 << 10  # larger documents are changed as bytes: lists that are multiplied would multiply again
_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    300,
    301,
    512,
    1024,
    32_767,
    32_768,
    65_535,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 63) - 1,
)
_TOKENS = (
    b"\x1b[2J\x1b]0;owned\x07",
    b"\x9b31m",
    b"\r\n",
    b"\0",
    b"\xff\xd8\xff",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    "\u202e\u2028\ufeff\ufffe".encode(),
    b"1e999",
    b"-0.0",
    b"NaN",
    b"9" * 400,
    b"[" * 3000,
    b'{"a":' * 1500,
    b"A" * 70_000,
    b"%00%0a%",
    b"../../",
    b"kafka",
    b"[bold red]",
    b"\\ud800",
    b"9999-12-31T23:59:59.9999999+23:59",
    b"0001-01-01T00:00:00-23:59",
)
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.1, -0.0, 1e308, 1e-320,
    "", "\0", "a\0b", "\ud800", "\x1b[2J", "x" * 129, "x" * 2001, "x" * 70_000, "[]", "[[0,1]]", "[[1,0]]", "nan", "kafka", "../x",
    "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00", "2026-01-31T12:00:00", "2026-01-31T12:00:00.123456789Z", "\u202e",
    "a/b/c/d", "kafka/c/t/0/1", [], {}, [[]], [0, 1], [None] * 400,
)  # fmt: skip


def mutate(data: bytes, random: Random, others: Sequence[bytes] = (), max_bytes: int = MAX_BYTES) -> bytes:
    """Some bytes changed in one to four ways. `others` are mixed in."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        changed = _json(data, random) if random.random() < 0.5 else None
        data = (changed if changed is not None else _bytes(data, random, others))[:max_bytes]
    return data


def _bytes(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    size = len(changed)
    at = random.randrange(size + 1)
    end = min(size, at + (random.choice((1, 2, 4, 16)) if random.random() < 0.7 else random.randrange(size + 1)))
    match random.randrange(10):
        case 0 if size:
            changed[at % size] ^= 1 << random.randrange(8)
        case 1 if size:
            changed[at % size] = random.randrange(256)
        case 2:
            width = random.choice((1, 2, 4, 8))
            number = random.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, random.choice(("big", "little")))
        case 3:
            del changed[at:end]
        case 4:
            changed[at:at] = changed[at:end] * random.choice((1, 1, 2, 50))
        case 5:
            changed[at:at] = random.randbytes(random.choice((1, 2, 8, 64)))
        case 6:
            del changed[at:]
        case 7 if others:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            changed[at:end] = other[start : start + random.choice((4, 64, len(other)))]
        case 8:
            changed[at:end] = random.choice(_TOKENS)
        case _:
            piece = changed[at:end]
            random.shuffle(piece)
            changed[at:end] = piece
    return bytes(changed)


def _json(data: bytes, random: Random) -> bytes | None:
    """One node of a JSON document changed; None if it is none."""
    if data[:1] not in (b"{", b"[") or len(data) > MAX_JSON_BYTES:
        return None
    try:
        tree = json.loads(data)
        return json.dumps(_changed(tree, random), ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return None


def _changed(node: Any, random: Random) -> Any:
    if isinstance(node, str) and node[:1] in ("[", "{") and random.random() < 0.8:
        try:
            return json.dumps(_changed(json.loads(node), random))
        except (ValueError, RecursionError):
            return node[: random.randrange(len(node))]
    if not isinstance(node, dict | list) or not node or random.random() < 0.15:
        if isinstance(node, str) and random.random() < 0.5:
            at = random.randrange(len(node) + 1)
            return node[:at] + random.choice(("\0", "/", "\n", "\x1b", "é", "%", "..", "9", "")) + node[at + random.randrange(2) :]
        return random.choice(_ODD)
    if isinstance(node, list):
        at = random.randrange(len(node))
        if random.random() < 0.3:
            return random.choice((node[:at] + node[at + 1 :], [*node, *node[at:]], node[::-1], node * 150))
        return [*node[:at], _changed(node[at], random), *node[at + 1 :]]
    name = random.choice(list(node))
    if random.random() < 0.1:
        return {other: value for other, value in node.items() if other != name}
    if random.random() < 0.05:
        return {**node, random.choice(("unknown", "", "\0", name.upper())): node[name]}
    return {**node, name: _changed(node[name], random)}
