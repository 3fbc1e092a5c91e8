"""Laws of everything that travels: what is built reads back, what is not valid is refused, and nothing else ever happens."""

from __future__ import annotations

import datetime as dt
import json
import zoneinfo
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.detections import Detection, Detections
from schemas.envelope import ESCALATION, MAX_HEADER_BYTES, Envelope, check_bounds
from schemas.incidents import Incident, Names, Witness, Witnesses
from schemas.messages import (
    Alert,
    AlertState,
    Asked,
    Control,
    Drop,
    EpochMark,
    EpochState,
    Escalation,
    Position,
    Ranges,
    Reason,
    Result,
    Status,
    Tier,
    Verdict,
)
from schemas.records import MAX_RECORD_BYTES, InvalidRecord, Record
from schemas.rules import Zone
from schemas.snapshots import LogPlace, Snapshot

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
SEEN = Detections([Detection("person", 0.91, 0.1, 0.2, 0.3, 0.4, 7)])
ANSWER = {
    "id": "cam-1/e/0",
    "source": "cam-1",
    "captured_at": NOON,
    "status": Status.FINAL,
    "detections": SEEN,
    "confidence": 0.5,
    "tier": Tier.LEAF,
    "site": "leaf-1",
    "rank": 10,
    "generation": 0,
    "model": "nanodet",
    "model_digest": "a" * 64,
}
VALID: dict[type[Record], dict[str, Any]] = {
    Verdict: {**ANSWER, "evidence": "b" * 64, "note": "late"},
    Result: {**ANSWER, "order": "1.10.3.0000000000.05000." + "0" * 32},
    Incident: {
        "id": "incident-1",
        "rule": "door",
        "place": "zone:gate",
        "label": "person",
        "source": "cam-1",
        "state": AlertState.RAISED,
        "version": 0,
        "started_at": NOON,
        "ended_at": NOON,
        "score": 0.9,
        "alerts": 1,
        "sources": Names(["cam-1"]),
        "sites": Names(["leaf-1"]),
        "witnesses": Witnesses(
            [
                Witness(
                    alert="alert-1",
                    source="cam-1",
                    site="leaf-1",
                    record="cam-1/e/0",
                    captured_at=NOON,
                    state=AlertState.RAISED,
                    score=0.9,
                )
            ]
        ),
    },
    Snapshot: {
        "layout": 1,
        "partition": 0,
        "cluster": "c",
        "logs": (LogPlace(topic="results", topic_uuid="u", next_offset=5, mark_offset=4, mark="m"),),
        "slot": "a",
        "parts": 1,
        "digest": "a" * 64,
    },
    Alert: {
        "id": "alert-1",
        "rule": "door",
        "source": "cam-1",
        "site": "leaf-1",
        "record": "cam-1/e/0",
        "captured_at": NOON,
        "state": AlertState.RAISED,
        "version": 0,
        "label": "person",
        "min_score": 0.5,
        "zone": Zone([(0, 0), (1, 0), (1, 1)]),
        "seen": SEEN,
        "score": 0.91,
        "held_s": 1.5,
        "model_digest": "a" * 64,
        "deadline_ms": 10_000,
    },
    Escalation: {
        "id": "esc-1",
        "source": "cam-1",
        "site": "leaf-1",
        "reason": Reason.ALERT,
        "records": (Asked(id="cam-1/e/0", captured_at=NOON, detections=SEEN.to_json()),),
        "evidence": "b" * 64,
        "content_type": "image/jpeg",
        "deadline_ms": 10_000,
        "ttl_s": 60.0,
        "alerts": ("alert-1",),
    },
    Asked: {"id": "cam-1/e/0", "captured_at": NOON, "detections": "[]"},
    Drop: {"source": "cam-1", "epoch": "e", "site": "leaf-1", "stage": "leaf", "reason": "stale", "ranges": Ranges([(0, 4), (6, 6)])},
    EpochMark: {
        "source": "cam-1",
        "epoch": "e",
        "site": "leaf-1",
        "state": EpochState.MARK,
        "assigned": 9,
        "acknowledged": 7,
        "started_at": NOON,
        "fps": 30.0,
    },
    Control: {"site": "leaf-1", "region": "region", "inferences_per_s": 2.5, "input_side": 512},
    Position: {"cluster": "c", "topic": "t", "topic_uuid": "u", "partition": 3, "next_offset": 17, "writer": "w"},
}
KINDS = [kind for kind in VALID if kind is not Asked]  # Asked never travels alone
NESTED = {"records", "alerts"}  # only in an escalation, which travels in a header
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
records = st.sampled_from(KINDS).flatmap(st.from_type)

# JSON that is broken, too large for a number, no number, too deep, or no text.
NASTY = [
    *("null", "true", "0", "-1", "1.0", "1e400", "-1e400", "NaN", "Infinity", "-0", "1e-400", "9" * 30, "9" * 5000, "-" + "9" * 5000),
    *(
        "",
        "{",
        "[",
        '"',
        "[]",
        "{}",
        '""',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\x01"',
        '"a\\n"',
        '"kafka"',
        '"x' + "y" * 5000 + '"',
    ),
    *(
        "[" * 100_000,
        "[" * 900 + "]" * 900,
        '{"a":' * 50_000,
        '"2026-01-31T12:00:00"',
        '"2026-01-31T12:00:00+02:00"',
        '"0001-01-01T00:00:00+14:00"',
    ),
    *('"9999-12-31T23:59:59.9999999Z"', '"2026-13-01T00:00:00Z"', '"2026-01-31T12:00:60Z"', '["person"]', "[[0,0],[1,1]]"),
]


def read(kind: type[Record], data: bytes) -> Record | None:
    """The law of reading: a valid value, which can be written and read again, or `InvalidRecord` and no other exception."""
    try:
        value = kind.from_bytes(data)
    except InvalidRecord as error:
        if kind.__name__ not in str(error) or len(str(error)) > 600:
            raise AssertionError(f"a message that does not say of what, or says too much: {error}") from error
        return None
    assert kind.from_bytes(value.to_bytes()) == value
    return value


@given(records)
def test_what_is_written_reads_back_as_it_was(value: Record) -> None:
    data = value.to_bytes()
    again = type(value).from_bytes(data)
    assert again == value
    assert again.to_bytes() == data


@given(records)
def test_on_the_wire_is_plain_json_that_sinks_take(value: Record) -> None:
    tree = json.loads(value.to_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for name, field in tree.items():
        if not (isinstance(value, Escalation) and name in NESTED) and not isinstance(value, Snapshot):  # which no sink reads
            assert isinstance(field, (str, int, float)), f"{name} holds {field!r}"
    for name in {"detections", "seen"} & set(tree):
        found = json.loads(tree[name])
        given_ = getattr(value, name)
        assert [item[:6] for item in found] == [[d.label, d.score, d.x0, d.y0, d.x1, d.y1] for d in given_]
        assert [item[6] for item in found] == [d.track for d in given_]
    if isinstance(value, Drop):
        assert [tuple(pair) for pair in json.loads(tree["ranges"])] == list(value.ranges.pairs)
    if isinstance(value, Alert):
        assert [tuple(point) for point in json.loads(tree["zone"])] == list(value.zone.points)


@given(records, st.sampled_from([None, 2]), st.booleans())
def test_other_writers_of_json_are_read(value: Record, indent: int | None, escaped: bool) -> None:
    tree = json.loads(value.to_bytes())
    tree["added_later"] = {"any": ["thing"]}
    assert type(value).from_bytes(json.dumps(tree, indent=indent, ensure_ascii=escaped).encode()) == value


@every_kind
def test_the_fields_have_the_names_and_forms_that_readers_know(kind: type[Record]) -> None:
    tree = json.loads(kind(**VALID[kind]).to_bytes())
    for name, field in VALID[kind].items():
        if isinstance(field, dt.datetime):
            assert tree[name] == "2026-01-31T12:00:00Z"
        elif isinstance(field, (str, int, float)):
            assert tree[name] == field
    nested = {
        "detections": '[["person",0.91,0.1,0.2,0.3,0.4,7]]' if kind is not Asked else "[]",
        "seen": '[["person",0.91,0.1,0.2,0.3,0.4,7]]',
        "zone": "[[0.0,0.0],[1.0,0.0],[1.0,1.0]]",
        "ranges": "[[0,4],[6,6]]",
    }
    for name in set(nested) & set(tree):
        assert tree[name] == nested[name]


@given(st.sampled_from(KINDS), st.binary() | st.text().map(str.encode))
@example(Verdict, b"")
@example(Verdict, b"[" * 500_000)
@example(Verdict, b'{"id":' * 100_000)
@example(Verdict, b"\xff\xfe\x00")
def test_any_bytes_are_refused_or_valid(kind: type[Record], data: bytes) -> None:
    read(kind, data)


@given(records, st.data())
def test_damaged_bytes_are_refused_or_valid(value: Record, data: st.DataObject) -> None:
    damaged = bytearray(value.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        end = min(len(damaged), at + data.draw(st.integers(0, 8)))
        damaged[at:end] = data.draw(st.binary(max_size=8) | st.sampled_from([token.encode() for token in NASTY if len(token) < 40]))
    read(type(value), bytes(damaged))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(records, st.data())
def test_any_json_in_any_field_is_refused_or_valid(value: Record, data: st.DataObject) -> None:
    tree = json.loads(value.to_bytes())
    name = data.draw(st.sampled_from(type(value).__struct_fields__))
    tree[name] = data.draw(json_values | json_values.map(json.dumps))
    if data.draw(st.booleans()):
        tree.pop(data.draw(st.sampled_from(sorted(tree))))
    read(type(value), json.dumps(tree).encode())


@every_kind
def test_nasty_json_in_each_field_is_refused_or_valid(kind: type[Record]) -> None:
    tree = json.loads(kind(**VALID[kind]).to_bytes())
    for name in kind.__struct_fields__:
        for token in NASTY:
            for text in (
                token,
                json.dumps(token),
                json.dumps(f"[{token}]"),
                json.dumps(f'[["a",{token},0,0,1,1]]'),
                json.dumps(f"[[0,{token}]]"),
            ):
                fields = [f'"{key}":{json.dumps(field)}' for key, field in tree.items() if key != name]
                read(kind, ("{" + ",".join([*fields, f'"{name}":{text}']) + "}").encode())


@every_kind
def test_a_missing_field_is_named(kind: type[Record]) -> None:
    tree = json.loads(kind(**VALID[kind]).to_bytes())
    for field in msgspec.structs.fields(kind):
        if field.required:
            with pytest.raises(InvalidRecord, match=f"{kind.__name__}.*{field.name}"):
                kind.from_bytes(json.dumps({name: value for name, value in tree.items() if name != field.name}).encode())


@every_kind
def test_a_tombstone_is_no_value(kind: type[Record]) -> None:
    with pytest.raises(InvalidRecord, match=f"not a {kind.__name__}.*tombstone"):
        kind.from_bytes(None)


# ---- what is built


WRONG: list[Any] = [
    *(None, True, -1, 0, 1 << 63, 10**400, 10**5000, -0.5, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, Decimal("0.5"), 1j),
    *(
        "",
        "\0",
        "a\0b",
        "\ud800",
        "a\udfffb",
        "a\n",
        "cam-1\n",
        "leaf-1\n",
        "x" * 5000,
        "kafka",
        "final",
        "leaf",
        "raised",
        "[]",
        "2026-01-31T12:00:00Z",
    ),
    *(b"bytes", bytearray(b"x"), ["x"], ("x",), ("\ud800",), ("\0",), {"x": 1}, object(), Detections, Detection("a", 0, 0, 0, 1, 1)),
    *(np.float64(0.5), np.float32(0.5), np.int64(3), np.array([1.0]), Status.FINAL, Tier.LEAF, AlertState.RAISED, SEEN, Zone(), Ranges()),
    *(NOON.replace(tzinfo=None), NOON.astimezone(zoneinfo.ZoneInfo("Europe/Berlin")), NOON.replace(tzinfo=zoneinfo.ZoneInfo("UTC"))),
    *(NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), NOON.date(), 1_769_860_800),
    *(
        (Asked(id="cam-1/e/0", captured_at=NOON),),
        [Asked(id="cam-1/e/0", captured_at=NOON)],
        ({"id": "cam-1/e/0", "captured_at": NOON},),
        (),
        ((),),
    ),
]


@pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
def test_whatever_is_built_can_travel_or_is_refused_by_field(kind: type[Record]) -> None:
    for name in kind.__struct_fields__:
        for value in WRONG:
            try:
                built = kind(**{**VALID[kind], name: value})
            except InvalidRecord as error:
                text = str(error)
                assert text.startswith(f"{kind.__name__}."), text
                assert len(text) < 600, "a message is for a person"
                text.encode()  # and can be logged
                continue
            again = kind.from_bytes(built.to_bytes())
            assert again == built, (name, value)
            assert again.to_bytes() == built.to_bytes(), (name, value)
            assert isinstance(getattr(built, name), type(getattr(again, name))), (name, value)


@pytest.mark.parametrize(
    ("kind", "field", "value", "expectation"),
    [
        (Verdict, "confidence", float("nan"), "nan.*`float` >= 0"),
        (Verdict, "confidence", float("inf"), "inf.*`float` <= 1"),
        (Alert, "held_s", float("inf"), "inf.*finite"),
        (Alert, "held_s", -0.1, r"-0.1.*`float` >= 0"),
        (Verdict, "model", "a\0b", "NUL"),
        (Verdict, "note", "half \ud83d", "surrogate.*UTF-8"),
        (Verdict, "note", "x" * 2001, "<= 2000"),
        (Verdict, "captured_at", NOON.replace(tzinfo=None), "timezone"),
        (Verdict, "captured_at", NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), r"2026-01-31T14:00:00\+02:00.*UTC"),
        (Verdict, "captured_at", "2026-01-31T12:00:00Z", "2026-01-31.*`str`.*`datetime`"),
        (Verdict, "status", "final", "'final'.*`str`.*`Status`"),
        (Verdict, "status", Tier.LEAF, "Invalid enum value"),
        (Verdict, "detections", "[]", r"'\[\]'.*`str`.*`Detections`"),
        (Verdict, "detections", [Detection("person", 1, 0, 0, 1, 1)], "JSON-encoded"),
        (Verdict, "rank", True, "True.*`int`"),
        (Verdict, "rank", 100, "100.*<= 99"),
        (Verdict, "rank", 10.0, "10.0.*`int`"),
        (Verdict, "generation", 1 << 31, "2147483648.*<"),
        (Verdict, "id", "cam-1/e/x", "sequence number"),
        (Verdict, "id", "cam-2/e/0", "cam-2/e/0.*source 'cam-1'"),
        (Verdict, "source", "cam-2", "cam-1/e/0.*source 'cam-2'"),
        (Verdict, "source", "cam 1", "cam 1.*regex"),
        (Verdict, "site", "leaf-1\n", "leaf-1.*regex"),
        (Verdict, "model_digest", "a" * 64 + "\n", "regex"),
        (Verdict, "deadline_ms", 5, "5 with status 'final'"),
        (Verdict, "status", Status.PROVISIONAL, "None with status 'provisional'"),
        (Alert, "version", 2, "2.*expected 0.*'raised'"),
        (Alert, "record", "cam-2/e/0", "cam-2/e/0.*source 'cam-1'"),
        (Alert, "zone", ((0, 0), (1, 0), (1, 1)), "JSON-encoded"),
        (Escalation, "records", (), "length >= 1"),
        (Escalation, "records", (Asked(id="cam-2/e/0", captured_at=NOON),), "cam-2/e/0.*source 'cam-1'"),
        (Escalation, "alerts", ("a", "b\0"), "NUL"),
        (Escalation, "alerts", ("a", "\ud800"), "surrogate"),
        (Escalation, "alerts", ["a"], "`list`.*`tuple`"),
        (Escalation, "ttl_s", 0, "0.*> 0"),
        (Asked, "id", 5, "5.*`str`"),
        (Asked, "detections", "nonsense", "not a JSON array"),
        (Asked, "captured_at", NOON.replace(tzinfo=None), "timezone"),
        (Drop, "epoch", "e\n", "regex"),
        (Drop, "ranges", ((0, 4),), "JSON-encoded"),
        (Control, "input_side", 31, "31.*>= 32"),
        (Position, "leader_epoch", -2, "-2.*>= -1"),
    ],
)
def test_the_message_names_struct_field_value_and_expectation(kind: type[Record], field: str, value: Any, expectation: str) -> None:
    named = {"source": r"(source|id)", "status": "(status|deadline_ms)"}.get(field, field)
    with pytest.raises(InvalidRecord, match=rf"(?s)^{kind.__name__}\.{named}.*{expectation}"):
        kind(**{**VALID[kind], field: value})


def test_a_changed_copy_is_checked_too() -> None:
    verdict = Verdict(**VALID[Verdict])
    with pytest.raises(InvalidRecord, match=r"Verdict\.confidence is 2"):
        msgspec.structs.replace(verdict, confidence=2.0)


def test_a_value_does_not_change() -> None:
    verdict = Verdict(**VALID[Verdict])
    with pytest.raises(AttributeError):
        verdict.rank = 30  # type: ignore[misc]


@given(st.from_type(Verdict))
def test_a_whole_number_for_a_float_makes_no_difference(verdict: Verdict) -> None:
    whole = msgspec.structs.replace(verdict, confidence=1)
    assert isinstance(whole.confidence, float)
    assert whole.to_bytes() == msgspec.structs.replace(verdict, confidence=1.0).to_bytes()


# ---- sizes


@every_kind
def test_sizes_are_bounded_before_parsing(kind: type[Record]) -> None:
    value = kind(**VALID[kind])
    data = value.to_bytes()
    assert kind.from_bytes(data + b" " * (kind.max_bytes - len(data))) == value
    with pytest.raises(InvalidRecord, match=f"{kind.__name__} of {kind.max_bytes + 1} bytes: at most {kind.max_bytes}"):
        kind.from_bytes(data + b" " * (kind.max_bytes + 1 - len(data)))


def test_what_could_not_be_read_is_not_written() -> None:
    drop = Drop(**{**VALID[Drop], "ranges": Ranges([(at, at) for at in range(10**12, 10**12 + 200_000, 2)])})
    with pytest.raises(InvalidRecord, match=f"at most {MAX_RECORD_BYTES} may travel"):
        drop.to_bytes()


def test_the_largest_escalation_fits_in_a_header() -> None:
    full = Detections([Detection("x" * 64, 0.12345, 0.12345, 0.12345, 0.56789, 0.56789, (1 << 53) - 1)] * 300).to_json()
    asked = Asked(id="s" * 64 + "/" + "e" * 64 + f"/{(1 << 63) - 1}", captured_at=NOON, detections=full)
    largest = Escalation(**{**VALID[Escalation], "source": "s" * 64, "records": (asked,)})
    headers = Envelope(id=largest.id, source=largest.source, type=ESCALATION, time=NOON).to_headers()
    check_bounds([*headers, ("escalation", largest.to_bytes())])
    assert Escalation.max_bytes + 8192 < MAX_HEADER_BYTES
    with pytest.raises(InvalidRecord, match=r"Escalation of .* at most"):
        Escalation(**{**VALID[Escalation], "source": "s" * 64, "records": (asked, asked)}).to_bytes()
