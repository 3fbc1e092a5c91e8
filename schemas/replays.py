"""What a record that was replayed from its dead letter says of its first life: its id, when the broker first took it, how often it came.

A record with our envelope keeps its id there. A foreign one was named after its place, which is another one now: a header keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.identity import InvalidIdentity, RecordId

ORIGIN = "headwater.origin"  # of foreign records: the id that they had, kafka/cluster-id/topic-uuid/partition/offset
APPENDED = "headwater.appended"  # when the broker first took the record: milliseconds since 1970
REPLAYS = "headwater.replays"  # how often it was replayed

MAX_REPLAYS = 1_000_000


class Replay(msgspec.Struct, frozen=True):
    """`count` is 0 for a record that was not replayed; `origin` is a foreign record's first place."""

    count: int = 0
    origin: RecordId | None = None
    appended_ms: int | None = None


NOT_REPLAYED = Replay()


def read_replay(headers: Iterable[tuple[str, bytes | None]] | None) -> Replay:
    """Read it from a record's headers; raises `InvalidIdentity` for an origin that is no foreign record's id."""
    found = {name: value or b"" for name, value in headers or () if name.startswith("headwater.")}
    if not found:
        return NOT_REPLAYED
    origin = None
    if ORIGIN in found:
        origin = RecordId.parse(found[ORIGIN].decode(errors="replace"))
        if not origin.foreign:
            raise InvalidIdentity(f"header {ORIGIN} is {str(origin)!r:.120}: only a foreign record needs one")
    count, appended = _number(found.get(REPLAYS)), _number(found.get(APPENDED))
    return Replay(min(count or 0, MAX_REPLAYS), origin, appended)


def _number(text: bytes | None) -> int | None:
    return int(text) if text and text.isdigit() and len(text) <= 16 else None
