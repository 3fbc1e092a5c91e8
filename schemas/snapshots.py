"""What a resolver says of a snapshot of its memory: how far into which logs it reaches, and how its parts are put together again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.messages import Count, Digest, Name, Text
from schemas.records import Record


class LogPlace(Record, frozen=True, kw_only=True):
    """How far a snapshot reaches into one partition of a log: all that lies before `next_offset` is in it.

    `mark` is a digest of the record at `mark_offset`, the last that was read: where another lies there now, the log was cut and written
    anew (a power cut).
    """

    topic: Name
    topic_uuid: Name
    next_offset: Count
    mark_offset: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1
    mark: Text = ""


class Snapshot(Record, frozen=True, kw_only=True):
    """A snapshot of what the resolver remembers of one partition.

    Its parts lie in the same partition under the keys `<slot>/0`, `<slot>/1`, ...; two slots take turns, so that the last whole snapshot
    stays until the next one is. `digest` is of all parts together. `layout` counts the versions of their form.
    """

    layout: Count
    partition: Count
    cluster: Name
    logs: Annotated[tuple[LogPlace, ...], Meta(max_length=8)]
    slot: Annotated[str, Meta(pattern=r"^[ab]\Z")]
    parts: Annotated[int, Meta(ge=1, le=1000)]
    digest: Digest
