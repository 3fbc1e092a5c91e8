"""Names of things: sources, epochs, record ids, escalation and alert ids. All of them can be computed again from what they name.

A record id is `source/epoch/sequence`. A record of a producer that is not ours has no such headers; it is named after the place
where Kafka put it, `kafka/cluster-id/topic-uuid/partition/offset`, so that reading it again names it again the same way.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, NamedTuple
from urllib.parse import quote, unquote

import uuid6
from msgspec import Meta

MAX_SEQUENCE = (1 << 63) - 1
SEQUENCE_DIGITS = 19  # zero-padded width of the `sequence` attribute, so that strings sort as numbers do

# In Python `$` also matches before a line break at the end, so patterns end in `\Z`.
Source = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._%-]{1,192}\Z", description="what produces records; unique in the fleet")]
Site = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z", description="one deployment of a tier")]
Epoch = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._%/-]{1,200}\Z", description="one run of a source")]
RecordIdText = Annotated[str, Meta(min_length=5, max_length=512, description="source/epoch/sequence")]

_source = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_epoch = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_number = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")  # one way to write each, and few enough digits to read
FOREIGN = "kafka"
MAX_SOURCE = 192  # characters of a source's name, percent-encoding included
_TAKEN = frozenset({FOREIGN, ".", ".."})
_LONG = "sha256-"


class InvalidIdentity(ValueError):
    """A name or id that does not follow its form; the message says which form."""


class RecordId(NamedTuple):
    """The id of one record. For foreign records `epoch` is `cluster/topic-uuid/partition` and `sequence` the offset."""

    source: str
    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.source}/{self.epoch}/{self.sequence}"

    @property
    def stream(self) -> str:
        """`source/epoch`: what sequences are dense within, and what the account adds up."""
        return f"{self.source}/{self.epoch}"

    @property
    def foreign(self) -> bool:
        return self.source == FOREIGN

    @classmethod
    def parse(cls, text: str) -> RecordId:
        """Read `source/epoch/sequence` or a foreign id; raises `InvalidIdentity`."""
        head, _, last = text.rpartition("/")
        source, _, epoch = head.partition("/")
        if not _number.match(last) or int(last) > MAX_SEQUENCE:
            raise InvalidIdentity(f"record id {text!r:.120}: the part after the last '/' must be a sequence number from 0")
        if source == FOREIGN:
            parts = epoch.split("/")
            if len(parts) != 3 or not all(map(_epoch.match, parts)) or not _number.match(parts[2]):
                raise InvalidIdentity(f"record id {text!r:.120}: expected kafka/cluster-id/topic-uuid/partition/offset")
        else:
            check_source(source)
            if not _epoch.match(epoch):
                raise InvalidIdentity(f"record id {text!r:.120}: epoch {epoch!r:.80} does not match [A-Za-z0-9._-]{{1,64}}")
        return cls(source, epoch, int(last))


def check_source(name: str) -> str:
    """Return a source's name, or raise `InvalidIdentity`. `kafka` is taken by foreign records."""
    if not _source.match(name) or name in _TAKEN:
        raise InvalidIdentity(
            f"source {name!r:.80}: expected 1 to 64 letters, digits, '.', '_' or '-', and not {FOREIGN!r}, which names foreign records"
        )
    return name


def source_of_key(key: bytes | None, topic: str, partition: int) -> str:
    """The source of a foreign record, from its Kafka key: percent-encoded, or named after the partition if it has no key.

    Different keys give different sources. A key that would take a name with a meaning of its own (`kafka`, a partition's, a digest's,
    `.` and `..`) has its first character percent-encoded too; one that is too long for a name is named by its digest.

    >>> source_of_key(b"gate 3", "frames", 0)
    'gate%203'
    """
    if not key:
        name = f"{topic}.{partition}"
    else:
        name = quote(key, safe="").replace("~", "%7E")
        rest = name.removeprefix(f"{topic}.")
        if name in _TAKEN or name.startswith(_LONG) or (rest != name and _number.match(rest)):
            name = f"%{ord(name[0]):02X}{name[1:]}"
    return name if len(name) <= MAX_SOURCE else _LONG + content_digest(key or name.encode())


def key_of_source(source: str) -> str:
    """A foreign source's key again, as a person would write it."""
    return unquote(source)


def new_epoch() -> str:
    """A new epoch: a random UUIDv7 (RFC 9562). It sorts by time for people; nothing in the system relies on that."""
    return str(uuid6.uuid7())


def foreign_id(cluster: str, topic_uuid: str, partition: int, offset: int) -> RecordId:
    """The id of a record that carries none: where Kafka put it."""
    return RecordId(FOREIGN, f"{cluster}/{topic_uuid}/{partition}", offset)


def _digest(*parts: str) -> str:
    if any("\n" in part for part in parts):  # the separator: with it inside a part, different parts could make one text
        raise InvalidIdentity(f"{parts!r:.120}: none of what makes an id may hold a line break")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def alert_id(rule: str, record_id: str) -> str:
    """An alert's id: the same rule on the same record is the same alert, whoever computes it and however often."""
    return "alert-" + _digest(rule, record_id)


def escalation_id(record_ids: tuple[str, ...], evidence_digest: str) -> str:
    """An escalation's id: the records asked about, and the evidence that goes with them."""
    return "esc-" + _digest(*record_ids, evidence_digest)


def content_digest(data: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
