"""Drift alarms as records: what may travel, and that both messages of one alarm have one name."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.drift import MAX_EVIDENCE, Cause, Drift, DriftState, Evidence, drift_id
from schemas.records import InvalidRecord

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def drift(**changes: Any) -> Drift:
    fields: dict[str, Any] = {
        "id": drift_id("cam-1", Cause.BLUR, NOON),
        "source": "cam-1",
        "site": "leaf-1",
        "cause": Cause.BLUR,
        "state": DriftState.OPENED,
        "version": 0,
        "opened_at": NOON,
        "at": NOON,
        "before": 2.3,
        "after": 0.1,
        "evidence": Evidence({"contrast": 40.0, "noise": 2}),
    }
    return Drift(**fields | changes)


def test_what_was_written_is_read() -> None:
    opened = drift()
    closed = drift(state=DriftState.CLOSED, version=1, at=NOON + dt.timedelta(seconds=30))
    for record in (opened, closed, drift(evidence=Evidence())):
        assert Drift.from_bytes(record.to_bytes()) == record
    assert json.loads(opened.to_bytes())["evidence"] == '{"contrast":40.0,"noise":2.0}'


@given(
    st.dictionaries(st.text(min_size=1, max_size=90).filter(str.isprintable), st.floats(allow_nan=False, allow_infinity=False), max_size=9)
)
def test_any_figures_travel(figures: dict[str, float]) -> None:
    evidence = Evidence(figures)
    assert Evidence.from_json(evidence.to_json()) == evidence
    assert dict(evidence.items()) == figures
    assert list(evidence) == sorted(figures)


@pytest.mark.parametrize(
    "figures",
    [
        {"": 1.0},
        {"a": math.nan},
        {"a": math.inf},
        {"a": True},
        {"a": "1"},
        {"a\0": 1.0},
        {"a" * 97: 1.0},
        {str(number): 1.0 for number in range(MAX_EVIDENCE + 1)},
    ],
)
def test_what_is_no_evidence(figures: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        Evidence(figures)


@pytest.mark.parametrize("text", ["", "[]", '{"a":"b"}', '{"a":NaN}', '{"a":1e999}', "null"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidRecord):
        Evidence.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"state": DriftState.CLOSED},
        {"at": NOON + dt.timedelta(seconds=1)},
        {"before": math.nan},
        {"cause": "weather"},
        {"source": "a/b"},
        {"evidence": {"a": 1.0}},
    ],
)
def test_what_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        drift(**changes)


def test_one_alarm_one_name() -> None:
    assert drift_id("cam-1", Cause.BLUR, NOON) == drift_id("cam-1", Cause.BLUR, NOON)
    others = {
        drift_id("cam-2", Cause.BLUR, NOON),
        drift_id("cam-1", Cause.NOISE, NOON),
        drift_id("cam-1", Cause.BLUR, NOON + dt.timedelta(microseconds=1)),
    }
    assert len(others | {drift_id("cam-1", Cause.BLUR, NOON)}) == 4


def test_states_are_a_chain() -> None:
    assert [state.height for state in DriftState] == [0, 1]
    assert msgspec.json.encode(Cause.VIEW) == b'"view"'
