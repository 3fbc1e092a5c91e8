"""What the resolver remembers: the join holds over any history, however little is kept whole, and nothing grows without bound."""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agents.memory
from agents.memory import Memory, State
from schemas.alerts import join_alerts
from schemas.detections import Detections
from schemas.identity import alert_id
from schemas.messages import RANK, Alert, AlertState, Result, Status, Tier, Verdict
from schemas.records import InvalidRecord
from schemas.resolution import result_of, unanswered
from schemas.rules import Zone

LEAF, REGION = Tier.LEAF, Tier.REGION


@pytest.fixture(scope="module")
def answer(tools: ModuleType) -> Any:
    def make(record: str, tier: Tier = LEAF, status: Status = Status.FINAL, **changes: Any) -> Result:
        return result_of(verdict_of(tools, record, tier, status, **changes))

    return make


def verdict_of(tools: ModuleType, record: str, tier: Tier = LEAF, status: Status = Status.FINAL, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "id": record,
        "source": record.split("/")[0],
        "captured_at": tools.NOON,
        "status": status,
        "detections": Detections(),
        "confidence": 0.5,
        "tier": tier,
        "site": "site-1",
        "rank": RANK[tier],
        "generation": 0,
        "model": "m",
        "model_digest": "d" * 64,
        "deadline_ms": 1000 if status is Status.PROVISIONAL else None,
    }
    return Verdict(**{**fields, **changes})


def alert_of(tools: ModuleType, record: str, state: AlertState = AlertState.RAISED, rule: str = "r") -> Alert:
    return Alert(
        id=alert_id(rule, record),
        rule=rule,
        source=record.split("/")[0],
        site="site-1",
        record=record,
        captured_at=tools.NOON,
        state=state,
        version=state.height,
        label="person",
        min_score=0.5,
        zone=Zone(),
        seen=Detections([tools.person()]),
        score=0.9,
        held_s=0.0,
        model_digest="d" * 64,
        deadline_ms=1000,
    )


# ---- results


def test_only_what_is_better_changes_anything(answer: Any) -> None:
    memory = Memory()
    provisional, final, region = answer("cam/e/0", status=Status.PROVISIONAL), answer("cam/e/0"), answer("cam/e/0", REGION)
    assert memory.learn(provisional) == provisional
    assert memory.learn(provisional) is None
    assert memory.learn(region) == region
    assert memory.learn(final) is None
    assert memory.result("cam/e/0") == region


def test_what_could_be_better_is_not_remembered_before_it_is_kept(answer: Any) -> None:
    memory = Memory()
    first = answer("cam/e/0")
    assert memory.improved(first) == first
    assert memory.improved(first) == first  # as a retry finds it
    memory.keep(first, 0.0)
    assert memory.improved(first) is None


def test_settled_records_are_still_known_and_still_beaten(answer: Any) -> None:
    memory = Memory(recent=2, asked=2)
    for n in range(50):
        memory.learn(answer(f"cam/e/{n}", REGION if n % 10 == 0 else LEAF))
    for n in range(45):  # all settled
        assert memory.learn(answer(f"cam/e/{n}")) is None
        assert memory.learn(answer(f"cam/e/{n}", status=Status.PROVISIONAL)) is None
        assert (memory.learn(answer(f"cam/e/{n}", REGION)) is None) is (n % 10 == 0)
    for n in range(45):
        assert memory.learn(answer(f"cam/e/{n}", REGION)) is None
        newer = answer(f"cam/e/{n}", REGION, generation=1)
        assert memory.learn(newer) == newer  # a better model's answer wins whenever it comes
        assert memory.learn(newer) is None
    assert memory.learn(answer("cam/e/1000")) is not None  # a new record, beyond a gap
    assert memory.learn(answer("cam/e/999")) is not None  # and within it
    assert memory.learn(answer("cam/f/0")) is not None  # and of another epoch


STEPS = [
    {"tier": LEAF, "status": Status.PROVISIONAL},
    {"tier": LEAF, "status": Status.FINAL},
    {"tier": LEAF, "status": Status.UNANSWERED, "rank": RANK[REGION]},
    {"tier": REGION, "status": Status.FINAL},
    {"tier": REGION, "status": Status.FINAL, "generation": 3},
    {"tier": Tier.CLOUD, "status": Status.FINAL},
    {"tier": LEAF, "status": Status.FAILED},
]


@given(
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(range(len(STEPS)))), max_size=60),
    st.integers(1, 8),
    st.integers(0, 4),
)
@settings(deadline=None, max_examples=300)
def test_however_little_is_kept_whole_the_writes_are_those_of_the_join(
    answer: Any, history: list[tuple[int, int]], recent: int, asked: int
) -> None:
    """The oracle keeps everything: a record's writes are the steps up among its verdicts, each once."""
    memory = Memory(recent=recent, asked=asked)
    best: dict[str, str] = {}
    for n, step in history:
        new = answer(f"cam/{'ef'[n % 2]}/{n // 2}", **STEPS[step])
        written = memory.learn(new)
        if new.order > best.get(new.id, ""):
            assert written == new
            best[new.id] = new.order
        else:
            assert written is None


def test_what_a_higher_tier_said_is_kept_whole_for_longer(answer: Any) -> None:
    """An alert that comes late, after an outage, finds the answer that judges it."""
    memory = Memory(recent=3)
    region = answer("cam/e/0", REGION)
    memory.learn(region)
    for n in range(1, 100):
        memory.learn(answer(f"cam/e/{n}"))
    assert memory.result("cam/e/0") == region
    assert memory.result("cam/e/1") is None


# ---- deadlines


def test_a_deadline_passes_once_and_only_for_what_nobody_answered(answer: Any) -> None:
    memory = Memory()
    for n in range(4):
        memory.learn(answer(f"cam/e/{n}", status=Status.PROVISIONAL, deadline_ms=1000), 5000.0 + n)
    memory.learn(answer("cam/e/1", REGION), 5500.0)
    memory.learn(answer("cam/e/2", status=Status.PROVISIONAL, deadline_ms=1000, confidence=0.9), 5600.0)  # it does not start anew
    assert memory.overdue(5999.9) == []
    assert [result.id for result in memory.overdue(6002.0)] == ["cam/e/0", "cam/e/2"]
    assert [result.id for result in memory.overdue(9000.0)] == ["cam/e/3"]
    assert memory.overdue(1e12) == []
    assert memory.open == 0


def test_what_waits_is_kept_whole_until_its_deadline(tools: ModuleType, answer: Any) -> None:
    memory = Memory(recent=3)
    waiting = verdict_of(tools, "cam/e/0", status=Status.PROVISIONAL)
    memory.learn(result_of(waiting), 0.0)
    for n in range(1, 100):
        memory.learn(answer(f"cam/e/{n}"), float(n))
    assert [result.id for result in memory.overdue(1000.0)] == ["cam/e/0"]
    late = result_of(unanswered(waiting))
    assert memory.learn(late) == late
    assert memory.learn(late) is None
    assert memory.learn(answer("cam/e/0", REGION)) is not None  # an answer that still comes wins


def test_who_waited_and_was_answered_waits_no_more(answer: Any) -> None:
    memory = Memory(recent=1)
    for record, status in (
        ("cam/e/0", Status.PROVISIONAL),
        ("cam/e/1", Status.FINAL),
        ("cam/e/0", Status.FINAL),
        ("cam/e/2", Status.FINAL),
    ):
        assert memory.learn(answer(record, status=status)) is not None
    assert memory.learn(answer("cam/e/0")) is None  # settled as final, not found waiting
    assert memory.overdue(1e12) == []


# ---- bounds


def test_all_that_is_kept_is_bounded(tools: ModuleType, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.memory, "ALERTS", 20)
    memory = Memory(recent=20, asked=20, waiting=20, keep_s=100)
    for n in range(3000):
        at_ms = 1e12 + n * 1000  # a second each
        memory.learn(answer(f"cam/e{n}/0", status=Status.PROVISIONAL if n % 2 else Status.FINAL), at_ms)
        if n % 3:
            memory.keep_alert(alert_of(tools, f"cam/e/{n}"))
        else:
            memory.read_alert(alert_of(tools, f"cam/e/{n % 30}").to_bytes())
        if n < 1000:
            memory.overdue(at_ms)
    kept = {name: len(value) for name, value in vars(memory).items() if isinstance(value, (dict, list, deque))}
    assert kept.pop("_due") <= 2 * 40 + 1001, "deadlines that nobody asks for"
    assert kept.pop("_early") <= 1020
    kept |= {f"settled {n}": sum(map(len, part.values())) for n, part in enumerate(memory._settled)}
    assert max(kept.values()) <= 110, kept
    assert len(memory._by_record) <= 20
    assert max(len(copies) for copies in memory._alerts.values() if isinstance(copies, list)) <= agents.memory.COPIES


def test_settled_records_are_remembered_for_as_long_as_they_can_come_again(answer: Any) -> None:
    memory = Memory(recent=1, keep_s=100)
    for second in range(1000):
        memory.learn(answer(f"cam/e/{second}"), 1e12 + second * 1000)
        assert memory.learn(answer(f"cam/e/{max(0, second - 99)}"), 1e12 + second * 1000) is None


# ---- alerts


def test_alerts_are_found_by_their_record_as_they_were_kept(tools: ModuleType) -> None:
    memory = Memory()
    raised, confirmed = alert_of(tools, "cam/e/0"), alert_of(tools, "cam/e/0", AlertState.CONFIRMED)
    other = alert_of(tools, "cam/e/0", rule="q")
    for alert in (raised, other, confirmed):
        memory.keep_alert(alert)
    assert memory.alert(raised.id) == confirmed
    assert {alert.id: alert.state for alert in memory.alerts_of("cam/e/0")} == {raised.id: "confirmed", other.id: "raised"}
    assert memory.alerts_of("cam/e/1") == []
    assert memory.alert("alert-0") is None


# ---- read back from a log, written down, taken up again


class Step(msgspec.Struct, frozen=True):
    """A result or an alert that comes: of which record, which of `STEPS` or which state, and how it is told to the memory."""

    record: int
    what: int
    alert: bool


steps = st.builds(Step, st.integers(0, 5), st.integers(0, len(STEPS) - 1), st.booleans())


def feed(tools: ModuleType, answer: Any, memory: Memory, step: Step, at_ms: float, *, log: bool) -> bool:
    """Give a step to a memory, as live work does or as it lies in the log; whether it was new."""
    record = f"cam/{'ef'[step.record % 2]}/{step.record // 2}"
    if step.alert:
        new = alert_of(tools, record, list(AlertState)[step.what % 4])
        known = memory.alert(new.id)
        joined = join_alerts(known, new)
        if log:
            memory.read_alert(new.to_bytes())
            assert memory.alert(new.id) == joined
        else:
            memory.keep_alert(joined)
        return joined != known
    result = answer(record, **STEPS[step.what])
    if log:
        better = memory.improved(result) is not None
        memory.read_result(result.to_bytes(), at_ms)
        return better
    return memory.learn(result, at_ms) is not None


@given(st.lists(steps, max_size=40), st.lists(steps, max_size=20), st.integers(1, 5), st.integers(0, 3), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_what_was_read_back_or_taken_up_goes_on_as_if_nothing_had_happened(
    tools: ModuleType, answer: Any, before: list[Step], after: list[Step], recent: int, other: int, log: bool, dumped: bool
) -> None:
    """One memory lives through it all, another begins anew in the middle: from the log, or from a snapshot. They never differ again."""

    def empty() -> Memory:
        return Memory(recent=recent, asked=other, waiting=100)

    one, two = empty(), empty()
    for at, step in enumerate(before):
        feed(tools, answer, one, step, float(at), log=False)
        feed(tools, answer, two, step, float(at), log=log)
    if dumped:
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(two.dump()), type=State)
        two = empty()
        two.load(state)
    for at, step in enumerate(after, len(before)):
        assert feed(tools, answer, one, step, float(at), log=False) == feed(tools, answer, two, step, float(at), log=False)
        now_ms = at + 1000.0 - len(before) // 2  # deadlines take 1000 ms: those of the first half pass
        assert sorted(r.id for r in one.overdue(now_ms)) == sorted(r.id for r in two.overdue(now_ms))
        for record in {f"cam/{'ef'[n % 2]}/{n // 2}" for n in range(6)}:
            assert one.alerts_of(record) == two.alerts_of(record)
            assert one.result(record) == two.result(record)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"id": 3}', b"\xff", b'{"id": "cam/e/0"', b"[" * 100_000])
def test_what_is_no_result_and_no_alert_is_refused(data: bytes) -> None:
    memory = Memory()
    with pytest.raises(InvalidRecord):
        memory.read_result(data, 0.0)
    with pytest.raises(InvalidRecord):
        memory.read_alert(data)
    assert memory.dump() == Memory().dump()


def test_a_result_of_another_version_is_told_when_somebody_asks_for_it(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    region = answer("cam/e/0", REGION)
    memory.read_result(region.to_bytes().replace(b'"captured_at"', b'"taken_at"'), 0.0)
    assert memory.result("cam/e/0") is None
    assert "captured_at" in caplog.text
    assert memory.improved(answer("cam/e/0")) is None, "its order is still known"


def test_what_cannot_wait_any_longer_passes_early_and_not_unsaid(answer: Any) -> None:
    memory = Memory(recent=2, waiting=3)
    for n in range(10):
        memory.learn(answer(f"cam/e/{n}", status=Status.PROVISIONAL), float(n))
    assert [result.id for result in memory.overdue(10.0)] == [f"cam/e/{n}" for n in range(5)]
    assert [result.id for result in memory.overdue(1e9)] == [f"cam/e/{n}" for n in range(5, 10)]
