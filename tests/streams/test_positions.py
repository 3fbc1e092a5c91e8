"""Positions: to what they are bound, and how the latest are read back."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.envelope import POSITION, Envelope
from schemas.messages import Position
from streams.clients import ClusterInfo
from streams.positions import go_on, headers_of, position_of, read_positions

AT = Position(cluster="c1", topic="alerts", topic_uuid="u1", partition=2, next_offset=70, leader_epoch=3, writer="w")


@given(cluster=st.sampled_from(["c1", "c2"]), uuid=st.sampled_from(["u1", "u2"]), offset=st.integers(0, 1 << 60))
def test_a_position_holds_for_its_own_cluster_and_topic_only(declared: Any, cluster: str, uuid: str, offset: int) -> None:
    info = ClusterInfo(cluster, {"alerts": (uuid, 4)})
    position = msgspec.structs.replace(AT, next_offset=offset)
    found = position_of({("c1", "alerts", 2): position}, declared("alerts"), 2, info)
    assert found == (position if (cluster, uuid) == ("c1", "u1") else None)
    assert position_of({}, declared("alerts"), 2, info) is None


@settings(max_examples=500)
@given(
    before=st.lists(st.integers(0, 3), min_size=10, max_size=30),
    after=st.lists(st.integers(4, 9), max_size=40),
    cut=st.integers(0, 30),
    carried=st.integers(0, 30),
    low=st.integers(0, 12),
)
def test_a_log_that_was_cut_is_carried_on_from_the_cut(before: list[int], after: list[int], cut: int, carried: int, low: int) -> None:
    """The model: a log is the list of its records' leader epochs; what is written after a cut has higher ones."""
    before, after = sorted(before), sorted(after)
    carried = min(carried, len(before))
    cut = min(cut, len(before))
    log = before[:cut] + after
    low = min(low, len(log))
    epoch = before[carried - 1] if carried else -1
    position = msgspec.structs.replace(AT, next_offset=carried, leader_epoch=epoch)
    asked: list[int] = []

    def epoch_at(offset: int) -> int:
        assert low <= offset < len(log)
        asked.append(offset)
        return log[offset]

    offset = go_on(position, low, len(log), epoch_at)
    if carried > low:
        expected = max(low, min(cut, carried))
        # Of the records with the last carried one's epoch, none is new: a cut within them shows only by what was written after it.
        assert offset == expected
    else:
        assert offset == carried  # nothing of what was carried is there any more; whoever calls starts at the low watermark
    assert len(asked) <= 8


def test_without_an_epoch_a_log_that_ends_before_the_position_is_read_again() -> None:
    unknown = msgspec.structs.replace(AT, next_offset=70, leader_epoch=-1)

    def never(_: int) -> int:
        raise AssertionError

    assert go_on(unknown, 10, 40, never) == 10
    assert go_on(unknown, 10, 70, never) == 70
    assert go_on(AT, 10, 40, lambda _: None) == 10
    assert go_on(AT, 10, 90, lambda _: None) == 70  # the last record may be a transaction's marker, which nobody reads


@pytest.mark.parametrize(("info", "replaced"), [(("c2", "u1"), "cluster"), (("c1", "u2"), "topic"), (("c2", "u2"), "cluster")])
def test_it_says_what_was_replaced(declared: Any, caplog: pytest.LogCaptureFixture, info: tuple[str, str], replaced: str) -> None:
    caplog.set_level(logging.WARNING)
    assert position_of({("c1", "alerts", 2): AT}, declared("alerts"), 2, ClusterInfo(info[0], {"alerts": (info[1], 4)})) is None
    assert [(record.topic, record.partition, record.replaced) for record in caplog.records] == [("alerts", 2, replaced)]


def test_the_latest_position_of_each_partition_is_read_and_others_are_passed_over(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = rig.topic("positions", cleanup_policy="compact")
    later = msgspec.structs.replace(AT, next_offset=90)
    other = msgspec.structs.replace(AT, partition=0, next_offset=1)
    rows = [(b"alerts/2", AT), (b"alerts/0", other), (b"alerts/2", later)]
    rig.put(topic, [(key, value.to_bytes(), []) for key, value in rows])
    rig.put(topic, [(b"x", b"no json", []), (b"y", b'{"cluster":""}', []), (b"gone", None, [])])
    assert read_positions(rig.clients, topic) == {("c1", "alerts", 2): later, ("c1", "alerts", 0): other}
    assert caplog.text.count("cannot be read and is passed over") == 2


def test_nothing_was_carried_yet(rig: Any) -> None:
    assert read_positions(rig.clients, rig.topic("positions")) == {}


def test_positions_travel_in_an_envelope() -> None:
    read = Envelope.from_headers(headers_of(AT, "leaf-1.link", dt.datetime(2026, 1, 31, tzinfo=dt.UTC)))
    assert read is not None
    assert (read.type, read.source, read.id) == (POSITION, "leaf-1.link", "alerts/2/70")
