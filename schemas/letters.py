"""What a person decided about a dead letter: that it was replayed, or discarded. It is recorded, since no letter can be changed."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from schemas.messages import Count, Name, Text
from schemas.records import Record


class Settlement(enum.StrEnum):
    """What became of a dead letter. `discarded`: a person takes the record for lost; the account then explains it as a drop."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"


class Decision(Record, frozen=True, kw_only=True):
    """The decision about one dead letter, named by its place and by when the broker took it, so that a topic that was made anew is not
    taken for the old one. `record` is the id of the record that failed, `replays` how often it had been replayed with this."""

    topic: Annotated[str, Meta(min_length=1, max_length=249)]
    partition: Count
    offset: Count
    appended_ms: Count
    settlement: Settlement
    by: Name
    record: Annotated[str, Meta(max_length=512)] | None = None
    replays: Count = 0
    note: Text | None = None
