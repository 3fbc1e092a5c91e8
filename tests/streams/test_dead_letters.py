"""Dead letters as data: what is read from one, how they are grouped, and what goes back."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Region, SiteConfig, Topics
from schemas.envelope import Envelope, check_bounds
from schemas.letters import Decision, Settlement
from streams.burial import ERRORS, letter_headers
from streams.dead_letters import Letter, Wanted, grouped, letter_topics, read_letter
from streams.message import Pairs
from streams.partition import partition_of
from streams.reader import Stored
from streams.settling import NotReplayable, returned
from streams.topology import Role, Topology

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
TOPOLOGY = Topology(SiteConfig(name="leaf-1", tier="leaf", topics=Topics(partitions=8)))
REGION = Topology(SiteConfig(name="r", tier="region", region=Region(sites=("leaf-1",))))
PLACES = {"frames": ("cluster", "uuid")}
OWN: Pairs = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"cam-1/e1/7"),
    ("ce_source", b"cam-1"),
    ("ce_type", b"headwater.frame.v1"),
    ("ce_time", b"2026-01-31T12:00:00Z"),
]


class Record:
    """A record of `frames`."""

    def __init__(self, headers: Pairs, key: bytes | None = b"k", value: bytes | None = b"v", topic: str = "frames") -> None:
        self._headers, self._key, self._value, self._topic = headers, key, value, topic

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 5

    def offset(self) -> int:
        return 42

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Pairs:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_000


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as found:  # noqa: BLE001 - any
        return found


def letter(record: Record, error: Exception | None = None, *, more: Pairs | None = None, offset: int = 0) -> Letter:
    headers = letter_headers(record, raised(error or RuntimeError("bug")), "leaf-1.leaf", None)
    topic = TOPOLOGY.topics[f"{record.topic()}.dlq"]
    at = NOON + dt.timedelta(seconds=offset)
    return read_letter(
        Stored(
            topic=topic,
            partition=0,
            offset=offset,
            appended_at=at,
            key=record.key(),
            value=record.value(),
            headers=[*headers, *(more or [])],
        )
    )


def test_every_topic_with_dead_letters_takes_them_back_and_nothing_else_is_a_persons_to_write() -> None:
    for topology in (TOPOLOGY, REGION):
        role = topology.role(Role.OPERATOR)
        origins = {topic.name.removesuffix(".dlq") for topic in letter_topics(topology)}
        assert origins <= {topic.name for topic in role.writes()}
        assert {topic.base for topic in role.writes() if topic.name not in origins} <= {
            "drops",
            "dlq.decisions",
            "labels",
            "link.orders",
            "up.drops",
        }
    assert "frames" in {topic.name.removesuffix(".dlq") for topic in letter_topics(TOPOLOGY)}


def test_what_a_letter_says() -> None:
    found = letter(Record(OWN), ValueError("bad"))
    assert (found.topic, found.partition, found.offset, found.source) == ("frames", 5, 42, "cam-1")
    assert (found.error, found.message, found.agent, found.replays) == ("builtins.ValueError", "bad", "leaf-1.leaf", 0)
    assert found.record == "cam-1/e1/7"
    assert found.appended_at == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)
    assert "in raised" in found.stack
    assert found.place == "frames.dlq@0:0"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ERRORS + "offset", ERRORS + "topic", "headwater.replays", "headwater.appended", "ce_id", "x"]),
            st.none() | st.binary(max_size=40),
        )
    )
)
def test_anything_in_a_dead_letter_topic_can_be_read(headers: Pairs) -> None:
    topic = TOPOLOGY.topics["frames.dlq"]
    found = read_letter(Stored(topic=topic, partition=0, offset=0, appended_at=None, key=b"\xff", value=None, headers=headers))
    assert found.topic
    grouped([found])


Own = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
            lambda name: not name.startswith((ERRORS, "headwater.", "ce_"))
        ),
        st.none() | st.binary(max_size=30),
    ),
    max_size=20,
)


@given(other=Own, key=st.none() | st.binary(max_size=20), value=st.none() | st.binary(max_size=50), times=st.integers(1, 4))
def test_what_goes_back_is_what_came_and_a_count(other: Pairs, key: bytes | None, value: bytes | None, times: int) -> None:
    record = Record([*OWN, *other], key, value)
    for number in range(times):
        back = returned(letter(record), TOPOLOGY, PLACES)
        assert (back.topic.name, back.partition, back.key, back.value) == ("frames", partition_of("cam-1", 8), key, value)
        extra = [("headwater.appended", b"1700000000000"), ("headwater.replays", b"%d" % (number + 1))]
        assert sorted(back.headers, key=str) == sorted([*OWN, *other, *extra], key=str)
        assert Envelope.from_headers(back.headers) == Envelope.from_headers(OWN)
        check_bounds(back.headers)
        record = Record(back.headers, key, value)


@given(other=Own, times=st.integers(1, 4))
def test_a_foreign_record_goes_back_to_its_partition_with_the_name_of_its_first_place(other: Pairs, times: int) -> None:
    record = Record(other)
    for _ in range(times):
        back = returned(letter(record), TOPOLOGY, PLACES)
        assert back.partition == 5
        assert dict(back.headers)["headwater.origin"] == b"kafka/cluster/uuid/5/42"
        record = Record(back.headers)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([("headwater.value.omitted", b"1")], "bytes"),
        ([("headwater.headers.omitted", b"1")], "headers"),
        ([(ERRORS + "topic", b"elsewhere")], "elsewhere"),
    ],
)
def test_a_letter_that_cannot_go_back_says_why(more: Pairs, reason: str) -> None:
    with pytest.raises(NotReplayable, match=reason):
        returned(letter(Record(OWN), more=more), TOPOLOGY, PLACES)


def test_letters_are_grouped_by_what_failed() -> None:
    found = [letter(Record(OWN), RuntimeError(f"bug {n}"), offset=n) for n in range(3)]
    found += [letter(Record([], b"gate"), KeyError("x"), offset=9)]
    first, second = grouped(found)
    assert (first.count, first.error, first.message, first.sources) == (3, "builtins.RuntimeError", "bug 2", 1)
    assert (first.first, first.last) == (NOON, NOON + dt.timedelta(seconds=2))
    assert (second.count, second.topic) == (1, "frames")


def test_filters_hold_together() -> None:
    one = letter(Record(OWN), ValueError("bad"))
    topics = tuple(letter_topics(TOPOLOGY))
    decision = Decision(topic="frames.dlq", partition=0, offset=0, appended_ms=0, settlement=Settlement.REPLAYED, by="me")
    assert Wanted(topics=topics, error="valueerror", digest=one.digest[:4], source="cam-1", record="cam-1/e1/7").takes(one)
    for wrong in ({"error": "KeyError"}, {"digest": "zz"}, {"source": "cam"}, {"record": "cam-1/e1/8"}):
        assert not Wanted(topics=topics, **wrong).takes(one)
    settled = msgspec.structs.replace(one, settled=decision)
    assert not Wanted(topics=topics).takes(settled)
    assert Wanted(topics=topics, settled=True).takes(settled)
