"""Reading frames: ours by their envelope, foreign ones by their place; whatever else comes is refused with `InvalidFrame` only."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.detections import Detections
from schemas.envelope import FRAME, JPEG, VERDICT, Envelope
from schemas.frames import MAX_FRAME_BYTES, Frame, InvalidFrame, Origin, read_frame
from schemas.identity import RecordId, foreign_id, source_of_key
from schemas.messages import Status, Tier, Verdict

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
ORIGIN = Origin(cluster="c", topic="frames", topic_uuid="u", partition=3, offset=17, appended_at=NOON)
JPEG_BYTES = b"\xff\xd8\xff\xe0 more"
OURS = Frame(id=RecordId("cam-1", "e", 7), source="cam-1", captured_at=NOON - dt.timedelta(seconds=1), jpeg=JPEG_BYTES)
ATTRIBUTES: dict[str, Any] = {"id": "cam-1/e/7", "source": "cam-1", "type": FRAME, "time": NOON, "content_type": JPEG, "sequence": 7}


@given(st.from_type(Frame), st.from_type(Origin), st.none() | st.binary())
def test_ours_reads_back_as_it_was_whatever_its_key_and_place(frame: Frame, origin: Origin, key: bytes | None) -> None:
    assert read_frame(frame.jpeg, key, frame.to_headers(), origin) == frame


@given(st.none() | st.binary(), st.from_type(Origin))
def test_a_foreign_frame_is_named_after_its_place(key: bytes | None, origin: Origin) -> None:
    frame = read_frame(JPEG_BYTES, key, None, origin)
    assert frame == read_frame(JPEG_BYTES, key, [("other", b"header")], origin)
    assert frame.id == foreign_id(origin.cluster, origin.topic_uuid, origin.partition, origin.offset)
    assert frame.source == source_of_key(key, origin.topic, origin.partition)
    assert (frame.captured_at, frame.jpeg, frame.traceparent) == (origin.appended_at, JPEG_BYTES, None)


@given(st.none() | st.binary(), st.from_type(Origin))
def test_what_is_read_can_be_answered(key: bytes | None, origin: Origin) -> None:
    for frame in (read_frame(JPEG_BYTES, key, None, origin), OURS):
        verdict = Verdict(
            id=str(frame.id),
            source=frame.source,
            captured_at=frame.captured_at,
            status=Status.FINAL,
            detections=Detections(),
            confidence=1.0,
            tier=Tier.LEAF,
            site="leaf",
            rank=10,
            generation=0,
            model="m",
            model_digest="0" * 64,
        )
        assert Verdict.from_bytes(verdict.to_bytes()) == verdict
        assert Envelope.from_headers(frame.to_headers()) is not None


headers = st.lists(
    st.tuples(
        st.sampled_from(["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_sequence", "content-type"]) | st.text(),
        st.none()
        | st.binary()
        | st.sampled_from([b"1.0", FRAME.encode(), b"cam-1", b"kafka", b"cam-1/e/7", b"kafka/c/u/3/17", b"2026-01-31T12:00:00Z", b"7"])
        | st.sampled_from([b"cam-1/e/" + b"9" * 5000, b"cam-1/e/\xd9\xa3", b"0001-01-01T00:00:00+14:00", b"9" * 5000, b"x" * 70_000]),
    ),
    max_size=9,
)


@given(st.none() | st.binary() | st.just(JPEG_BYTES), st.none() | st.binary(), st.none() | headers, st.booleans())
def test_anything_is_a_frame_or_refused(
    value: bytes | None, key: bytes | None, pairs: list[tuple[str, bytes | None]] | None, ours: bool
) -> None:
    given_ = [*OURS.to_headers(), *(pairs or [])] if ours else pairs
    try:
        frame = read_frame(value, key, given_, ORIGIN)
    except InvalidFrame as error:
        str(error).encode()
        return
    assert frame.jpeg == value
    assert frame.id.foreign or frame.id.source == frame.source
    assert (
        read_frame(value, key, frame.to_headers(), ORIGIN) == frame if not frame.id.foreign else frame.id == RecordId("kafka", "c/u/3", 17)
    )


@pytest.mark.parametrize(
    ("value", "expectation"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"\xff", "starts with ff:.*starts with ffd8ff"),
        (b"\xff\xd8", "starts with ffd8:"),
        (b"\x89PNG\r\n", "starts with 89504e47"),
        (b"\0" * 9, "starts with 00000000"),
        (b"\xff\xd8\xff" + b"\0" * MAX_FRAME_BYTES, f"{MAX_FRAME_BYTES + 3} bytes: a frame has at most {MAX_FRAME_BYTES}"),
    ],
)
def test_a_value_that_is_no_frame_is_refused(value: bytes | None, expectation: str) -> None:
    for pairs in (None, OURS.to_headers(), [("ce_id", b"broken")]):  # the value is looked at first
        with pytest.raises(InvalidFrame, match=expectation):
            read_frame(value, b"cam-1", pairs, ORIGIN)


def test_the_limit_is_the_sites() -> None:
    assert read_frame(JPEG_BYTES, None, None, ORIGIN, max_bytes=len(JPEG_BYTES)).jpeg == JPEG_BYTES
    with pytest.raises(InvalidFrame, match=r"at most 8 \(ingress.max_frame_bytes\)"):
        read_frame(JPEG_BYTES, None, None, ORIGIN, max_bytes=8)


@pytest.mark.parametrize(
    ("change", "expectation"),
    [
        ({"type": VERDICT}, "ce_type is 'headwater.verdict.v1': expected 'headwater.frame.v1'"),
        ({"id": "nonsense"}, "record id 'nonsense'"),
        ({"id": "cam-1/e/" + "9" * 5000}, "must be a sequence number"),
        ({"source": "cam-2"}, "'cam-1/e/7' does not belong to ce_source 'cam-2'"),
        ({"source": "cam 1"}, "source 'cam 1': expected"),
        ({"source": "kafka", "id": "kafka/c/u/3/17", "sequence": 17}, "'kafka', which names foreign records"),
        ({"id": "kafka/c/u/3/17", "sequence": 17}, "'kafka/c/u/3/17' does not belong to ce_source 'cam-1'"),
        ({"sequence": 8}, "ce_sequence 8 is not the sequence of ce_id 'cam-1/e/7'"),
    ],
)
def test_an_envelope_that_names_no_frame_of_its_source_is_refused(change: dict[str, Any], expectation: str) -> None:
    pairs = Envelope(**{**ATTRIBUTES, **change}).to_headers()
    with pytest.raises(InvalidFrame, match=expectation):
        read_frame(JPEG_BYTES, b"cam-1", pairs, ORIGIN)


def test_a_broken_envelope_is_not_taken_for_a_foreign_record() -> None:
    for pairs in (OURS.to_headers()[1:], [*OURS.to_headers(), ("ce_time", b"soon")], [("a", b"")] * 65):
        with pytest.raises(InvalidFrame):
            read_frame(JPEG_BYTES, b"cam-1", pairs, ORIGIN)


@pytest.mark.parametrize(
    ("field", "value", "expectation"),
    [
        ("id", RecordId("cam-2", "e", 7), r"Frame\.id is 'cam-2/e/7': expected a record of the source 'cam-1'"),
        ("id", RecordId("cam-1", "e/f", 7), r"Frame\.id.*epoch 'e/f'"),
        ("id", RecordId("cam-1", "e", -1), r"Frame\.id.*sequence number"),
        ("id", "cam-1/e/7", r"Frame\.id"),
        ("source", "cam-2", "source 'cam-2'"),
        ("captured_at", NOON.replace(tzinfo=None), r"Frame\.captured_at is 2026-01-31T12:00:00: expected a time in UTC"),
        ("captured_at", NOON.astimezone(dt.timezone(dt.timedelta(hours=1))), "expected a time in UTC"),
        ("jpeg", b"", "a JPEG image starts with ffd8ff"),
        ("jpeg", b"PNG", "a JPEG image starts with ffd8ff"),
    ],
)
def test_a_frame_is_checked_when_it_is_built(field: str, value: Any, expectation: str) -> None:
    with pytest.raises(InvalidFrame, match=expectation):
        msgspec.structs.replace(OURS, **{field: value})


# ---- frames that were replayed from their dead letters

FIRST_MS = round(NOON.timestamp() * 1000) - 90_000


def test_a_replayed_frame_of_ours_says_how_often_and_how_old_it_is() -> None:
    frame = read_frame(
        JPEG_BYTES, b"cam-1", [*OURS.to_headers(), ("headwater.appended", b"%d" % FIRST_MS), ("headwater.replays", b"2")], ORIGIN
    )
    assert (frame.id, frame.captured_at, frame.replays, frame.waited_s) == (OURS.id, OURS.captured_at, 2, 90.0)
    assert read_frame(JPEG_BYTES, b"cam-1", OURS.to_headers(), ORIGIN).waited_s == 0.0


@given(st.none() | st.binary(), st.from_type(Origin))
def test_a_replayed_foreign_frame_keeps_its_id_source_and_time(key: bytes | None, again: Origin) -> None:
    first = read_frame(JPEG_BYTES, key, None, ORIGIN)
    headers = [("headwater.origin", str(first.id).encode()), ("headwater.replays", b"1")]
    later = msgspec.structs.replace(again, topic=ORIGIN.topic, appended_at=NOON + dt.timedelta(hours=1))
    ms = round(ORIGIN.appended_at.timestamp() * 1000)
    frame = read_frame(JPEG_BYTES, key, [*headers, ("headwater.appended", b"%d" % ms)], later)
    assert (frame.id, frame.source, frame.captured_at) == (first.id, first.source, first.captured_at)
    assert (frame.replays, frame.waited_s) == (1, 3600.0)


@pytest.mark.parametrize("origin", [b"", b"cam-1/e/7", b"kafka/c/u/3", b"kafka/c/u/3/-1", b"\xff", b"kafka/c/u/x/1"])
def test_an_origin_that_names_no_place_is_refused(origin: bytes) -> None:
    with pytest.raises(InvalidFrame):
        read_frame(JPEG_BYTES, b"k", [("headwater.origin", origin)], ORIGIN)


@given(replays=st.binary(max_size=30), appended=st.binary(max_size=30) | st.integers(0, 10**18).map(lambda n: b"%d" % n))
def test_other_words_about_a_replay_never_refuse_a_frame(replays: bytes, appended: bytes) -> None:
    headers = [("headwater.replays", replays), ("headwater.appended", appended)]
    for frame in (
        read_frame(JPEG_BYTES, b"k", [*headers, ("headwater.origin", b"kafka/c/u/3/1")], ORIGIN),
        read_frame(JPEG_BYTES, b"cam-1", [*OURS.to_headers(), *headers], ORIGIN),
    ):
        assert frame.captured_at <= NOON
        assert frame.waited_s >= 0
        assert 0 <= frame.replays <= 1_000_000
