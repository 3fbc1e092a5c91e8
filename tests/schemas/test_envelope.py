"""The envelope: what is written as headers reads back, and what is not ours is either none or refused, with `InvalidEnvelope` only."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.envelope import (
    JSON,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    VERDICT,
    Envelope,
    InvalidEnvelope,
    check_bounds,
    read_time,
    write_time,
)
from schemas.identity import MAX_SEQUENCE

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PLAIN: dict[str, Any] = {"id": "cam-1/e/0", "source": "cam-1", "type": VERDICT, "time": NOON}
HEADERS = Envelope(**PLAIN, sequence=7).to_headers()

Pairs = list[tuple[str, bytes | None]]


def changed(**values: bytes | None) -> Pairs:
    """The headers of a good envelope with some changed, by name with `_` for `-`."""
    return [*HEADERS, *((name.replace("content_type", "content-type"), value) for name, value in values.items())]


def read(headers: Pairs) -> Envelope | None:
    """The law of reading: an envelope that can be written again, none, or `InvalidEnvelope` and no other exception."""
    try:
        envelope = Envelope.from_headers(headers)
    except InvalidEnvelope as error:
        str(error).encode()
        return None
    if envelope is not None:
        assert Envelope.from_headers(envelope.to_headers()) == envelope
    return envelope


@given(st.from_type(Envelope))
def test_what_is_written_reads_back_as_it_was(envelope: Envelope) -> None:
    headers = envelope.to_headers()
    again = Envelope.from_headers(headers)
    assert again == envelope
    assert again is not None
    assert again.time.tzinfo is dt.UTC
    assert dict(again.to_headers()) == dict(headers)


def test_the_headers_are_those_of_the_binding() -> None:
    envelope = Envelope(
        id="cam-1/e/7",
        source="cam-1",
        type=VERDICT,
        time=dt.datetime(2026, 1, 31, 13, 0, 0, 250, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        subject="a subject",
        sequence=7,
        traceparent=TRACE,
        extensions={"site": "leaf-1"},
    )
    assert dict(envelope.to_headers()) == {
        "ce_specversion": b"1.0",
        "ce_id": b"cam-1/e/7",
        "ce_source": b"cam-1",
        "ce_type": b"headwater.verdict.v1",
        "ce_time": b"2026-01-31T12:00:00.000250Z",
        "content-type": b"application/json",
        "ce_subject": b"a subject",
        "ce_sequence": b"0000000000000000007",
        "ce_traceparent": TRACE.encode(),
        "ce_site": b"leaf-1",
    }


def test_values_are_plain_utf8_and_nothing_is_percent_encoded() -> None:
    headers = dict(Envelope(**{**PLAIN, "source": "gate%203", "subject": "Tür 5 %"}).to_headers())
    assert headers["ce_source"] == b"gate%203"
    assert headers["ce_subject"] == "Tür 5 %".encode()
    again = Envelope.from_headers(list(headers.items()))
    assert again is not None
    assert (again.source, again.subject) == ("gate%203", "Tür 5 %")


@given(st.lists(st.integers(0, MAX_SEQUENCE) | st.integers(0, 2000), min_size=2))
def test_sequences_sort_as_text_as_they_do_as_numbers(sequences: list[int]) -> None:
    written = {number: dict(Envelope(**PLAIN, sequence=number).to_headers())["ce_sequence"] for number in sequences}
    assert sorted(sequences) == sorted(sequences, key=lambda number: written[number])
    assert {len(text) for text in written.values()} == {19}


# ---- reading what others wrote


@pytest.mark.parametrize("headers", [None, [], [("any", b"thing")], [("content-type", b"image/jpeg"), ("traceparent", TRACE.encode())]])
def test_a_record_without_an_envelope_has_none(headers: Pairs | None) -> None:
    assert Envelope.from_headers(headers) is None


header_names = st.sampled_from(
    ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_sequence", "ce_subject", "ce_traceparent", "content-type"]
)
names = header_names | header_names.map(str.upper) | st.text() | st.text().map("ce_{}".format)
values = (
    st.none()
    | st.binary()
    | st.text().map(str.encode)
    | st.datetimes().map(lambda time: time.isoformat().encode())
    | st.sampled_from([b"1.0", b"", b"0", b"9" * 5000, b"-1", "٣".encode(), b"\xff", b"\xed\xa0\x80", b"0001-01-01T00:00:00+14:00"])
    | st.sampled_from([b"9999-12-31T23:59:59.9999999Z", b"9999-12-31T23:59:59-14:00", b"2026-01-31T12:00:60Z", b"2026-01-31"])
)


@given(st.lists(st.tuples(names, values), max_size=8), st.booleans())
@example([("ce_time", b"0001-01-01T00:00:00+14:00")], True)
@example([("ce_time", b"9999-12-31T23:59:59-14:00")], True)
@example([("ce_sequence", b"9" * 5000)], True)
def test_any_headers_are_an_envelope_none_or_refused(headers: Pairs, good: bool) -> None:
    read([*HEADERS, *headers] if good else headers)


@given(st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=MAX_HEADERS - len(HEADERS)))
def test_headers_of_others_beside_ours_change_nothing(headers: Pairs) -> None:
    others = [
        (name, value)
        for name, value in headers
        if not name.lower().startswith("ce_") and name.lower() not in {"content-type", "traceparent"}
    ]
    assert Envelope.from_headers([*others, *HEADERS]) == Envelope.from_headers(HEADERS)


@pytest.mark.parametrize(
    ("headers", "expectation"),
    [
        (changed(ce_specversion=b"0.3"), "ce_specversion is '0.3': expected '1.0'"),
        (changed(ce_specversion=None), "ce_specversion is '': expected '1.0'"),
        ([("ce_id", b"x")], "ce_specversion is missing beside ce_id"),
        (HEADERS[1:], "ce_specversion is missing beside ce_id"),
        (HEADERS[:1], "ce_id is missing or empty"),
        (changed(ce_id=None), "ce_id is missing or empty"),
        (changed(ce_source=b""), "ce_source is missing or empty"),
        (changed(ce_type=None), "ce_type is missing or empty"),
        (changed(ce_id=b"\xff"), "ce_id is not UTF-8"),
        (changed(ce_id=b"\xed\xa0\x80"), "ce_id is not UTF-8"),
        (changed(ce_id=b"a\nb"), r"ce_id is 'a\\nb': expected text without control characters"),
        (changed(ce_time=None), "ce_time is ''"),
        (changed(ce_time=b"yesterday"), "ce_time is 'yesterday': expected an RFC 3339 time"),
        (changed(ce_time=b"2026-01-31T12:00:00"), "lacks a time zone"),
        (changed(ce_time=b"0001-01-01T00:00:00+14:00"), "not within the years"),
        (changed(ce_sequence=b""), "ce_sequence is ''"),
        (changed(ce_sequence=b"-1"), "ce_sequence is '-1'"),
        (changed(ce_sequence="٣".encode()), "ce_sequence is '٣'"),
        (changed(ce_sequence=b"9223372036854775808"), "ce_sequence is '9223372036854775808'"),
        (changed(ce_sequence=b"9" * 5000), "ce_sequence is '999"),
    ],
)
def test_a_broken_envelope_is_refused_by_header(headers: Pairs, expectation: str) -> None:
    with pytest.raises(InvalidEnvelope, match=expectation) as caught:
        Envelope.from_headers(headers)
    assert len(str(caught.value)) < 300


def test_of_several_headers_of_one_name_the_last_holds() -> None:
    envelope = Envelope.from_headers([*changed(ce_id=b"first"), ("CE_ID", b"second")])
    assert envelope is not None
    assert envelope.id == "second"


def test_optional_attributes_without_a_value_are_none() -> None:
    envelope = Envelope.from_headers(changed(ce_subject=None, ce_traceparent=None, content_type=b""))
    assert envelope is not None
    assert (envelope.subject, envelope.traceparent, envelope.content_type) == (None, None, JSON)


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "00",
        TRACE.upper(),
        TRACE + "\n",
        "ff" + TRACE[2:],
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
        TRACE + "-more",
    ],
)
def test_an_invalid_trace_is_ignored_when_read_and_refused_when_written(trace: str) -> None:
    try:
        envelope = Envelope.from_headers(changed(ce_traceparent=trace.encode()))
    except InvalidEnvelope:
        assert "\n" in trace  # no header of CloudEvents holds a line break
    else:
        assert envelope is not None
        assert envelope.traceparent is None
    with pytest.raises(InvalidEnvelope, match="ce_traceparent"):
        Envelope(**PLAIN, traceparent=trace).to_headers()


def test_a_plain_trace_header_counts_where_the_attribute_is_missing() -> None:
    beside = Envelope.from_headers([*HEADERS, ("traceparent", TRACE.encode())])
    assert beside is not None
    assert beside.traceparent == TRACE
    both = Envelope.from_headers([*HEADERS, ("traceparent", TRACE.encode()), ("ce_traceparent", TRACE[:-1].encode() + b"0")])
    assert both is not None
    assert both.traceparent == TRACE[:-1] + "0"


def test_names_that_no_attribute_has_are_other_peoples_headers() -> None:
    envelope = Envelope.from_headers(changed(ce_data_ref=b"x", ce_=b"y", ce_site=b"leaf-1", ce_datacontenttype=b"z", ce_data=b"w"))
    assert envelope is not None
    assert envelope.extensions == {"site": "leaf-1"}


# ---- writing


@pytest.mark.parametrize(
    ("field", "value", "expectation"),
    [
        ("id", "", "ce_id is ''"),
        ("source", "", "ce_source is ''"),
        ("type", "a\0", r"ce_type is 'a\\x00'"),
        ("id", "\ud800", r"ce_id is '\\ud800'"),
        ("id", "\ufdd0", r"ce_id is '\\ufdd0'"),
        ("id", None, "ce_id is None"),
        ("content_type", "", "content-type is ''"),
        ("subject", "", "ce_subject is ''"),
        ("time", NOON.replace(tzinfo=None), "lacks a time zone"),
        ("time", dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))), "not within the years"),
        ("sequence", -1, "ce_sequence is -1"),
        ("sequence", MAX_SEQUENCE + 1, "ce_sequence is 9223372036854775808"),
        ("extensions", {"Site": "x"}, "extension 'Site'"),
        ("extensions", {"": "x"}, "extension ''"),
        ("extensions", {"id": "x"}, "extension 'id'"),
        ("extensions", {"data": "x"}, "extension 'data'"),
        ("extensions", {"site": "a\nb"}, "ce_site"),
        ("extensions", {"a" + str(n): "x" for n in range(60)}, "66 headers: at most 64"),
        ("extensions", {"a": "x" * MAX_HEADER_BYTES}, "at most 65536"),
    ],
)
def test_what_would_not_read_back_is_not_written(field: str, value: Any, expectation: str) -> None:
    with pytest.raises(InvalidEnvelope, match=expectation):
        Envelope(**{**PLAIN, field: value}).to_headers()


# ---- bounds


def test_headers_are_bounded_in_number_and_size() -> None:
    check_bounds([("a", b"b")] * MAX_HEADERS)
    check_bounds([("a", b"b" * (MAX_HEADER_BYTES - 1))])
    for headers in ([("a", b"b")] * (MAX_HEADERS + 1), [("a", b"b" * MAX_HEADER_BYTES)], [("a" * MAX_HEADER_BYTES, None), ("b", b"")]):
        with pytest.raises(InvalidEnvelope, match=r"headers.*at most"):
            Envelope.from_headers([*headers, *HEADERS])


# ---- times


@given(st.datetimes(timezones=st.timezones() | st.just(dt.UTC), min_value=dt.datetime(1, 1, 2), max_value=dt.datetime(9999, 12, 30)))
def test_times_keep_their_microseconds(time: dt.datetime) -> None:
    text = write_time(time)
    assert len(text) == len("2026-01-31T12:00:00.000000Z")
    again = read_time(text)
    assert again == time.astimezone(dt.UTC)
    assert again.tzinfo is dt.UTC


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-01-31T12:00:00Z", 0),
        ("2026-01-31t12:00:00z", 0),
        ("2026-01-31T13:00:00+01:00", 0),
        ("2026-01-31T12:00:00.5Z", 500_000),
        ("2026-01-31T12:00:00.123456789Z", 123_457),
    ],
)
def test_the_forms_of_rfc_3339_are_read(text: str, micros: int) -> None:
    assert read_time(text) == NOON.replace(microsecond=micros)


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        time = read_time(text)
    except InvalidEnvelope:
        return
    assert read_time(write_time(time)) == time
