"""What producers rest on, without Kafka: the ledger, the pace, the window, and addresses that keep their secrets."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import check_source
from streams.production import ledger as ledger_module
from streams.production.address import InvalidAddress, default_name, kind_of, redact, unique
from streams.production.ledger import Ledger
from streams.production.pace import Pace, Thinning
from streams.production.window import FLOOR, Window

# ---- the ledger


@given(st.lists(st.tuples(st.sampled_from(["assign", "acknowledge", "drop", "declare", "arrive", "lose"]), st.randoms()), max_size=200))
def test_every_sequence_is_in_one_place_and_the_prefix_is_what_is_settled(steps: list[tuple[str, object]]) -> None:
    ledger = Ledger()
    open_: set[int] = set()
    settled: set[int] = set()
    dropped: set[int] = set()
    travelling: list[tuple[str, object]] = []
    for step, random in steps:
        pick = random.choice(sorted(open_)) if open_ else None  # type: ignore[attr-defined]
        if step == "assign":
            assert ledger.assign() == len(open_ | settled | dropped)
            open_.add(ledger.assigned - 1)
        elif step == "acknowledge" and pick is not None:
            ledger.acknowledge(pick)
            open_.remove(pick)
            settled.add(pick)
        elif step == "drop" and pick is not None:
            ledger.drop(pick, random.choice(["broker-slow", "closed"]))  # type: ignore[attr-defined]
            open_.remove(pick)
            dropped.add(pick)
        elif step == "declare" and (taken := ledger.declare()) is not None:
            travelling.append(taken)
        elif step in {"arrive", "lose"} and travelling:
            reason, ranges = travelling.pop(0)
            named = {number for first, last in ranges.pairs for number in range(first, last + 1)}  # type: ignore[attr-defined]
            assert named <= dropped - settled
            if step == "arrive":
                ledger.declared(reason, ranges)  # type: ignore[arg-type]
                settled |= named
            else:
                ledger.undeclared(reason, ranges)  # type: ignore[arg-type]
        everything = set(range(ledger.assigned))
        assert open_ | settled | dropped == everything
        prefix = next((number for number in range(ledger.assigned) if number not in settled), ledger.assigned)
        assert ledger.prefix == prefix
        assert ledger.settled == (settled == everything)
        assert set(ledger.unaccounted()) == everything - settled
        assert (ledger.acknowledged, ledger.dropped) == (len(settled - dropped), len(dropped))


def test_a_declaration_is_bounded_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_RANGES", 3)
    ledger = Ledger()
    for number in range(20):
        ledger.assign()
        ledger.drop(number, "odd") if number % 2 else ledger.acknowledge(number)
    declared = []
    while (taken := ledger.declare()) is not None:
        assert len(taken[1].pairs) <= 3
        declared += [first for first, _ in taken[1].pairs]
        ledger.declared(*taken)
    assert declared == list(range(1, 20, 2))
    assert ledger.settled


# ---- the pace


def played(fps: float, burst: int, costs: list[float]) -> tuple[list[float], Pace]:
    """Delivery times of a player whose frames cost so many seconds each to make ready."""
    pace, now, times = Pace(fps, start_s=1000.0, burst=burst), 1000.0, []
    for cost in costs:
        now += pace.wait_s(now)
        pace.take(now)
        times.append(now)
        now += cost
    return times, pace


rates = st.floats(0.5, 120)
bursts = st.integers(0, 8)


@given(rates, bursts, st.lists(st.floats(0, 3), min_size=1, max_size=80))
def test_no_frame_is_early_and_order_holds(fps: float, burst: int, costs: list[float]) -> None:
    times, pace = played(fps, burst, costs)
    assert times == sorted(times)
    assert all(at >= 1000.0 + number / fps - 1e-6 for number, at in enumerate(times))
    assert pace.slipped_s >= 0


@given(rates, bursts, st.lists(st.floats(0, 0.99), min_size=1, max_size=200))
def test_a_machine_that_keeps_up_never_drifts(fps: float, burst: int, shares: list[float]) -> None:
    times, pace = played(fps, burst, [share / fps for share in shares])
    assert all(abs(at - (1000.0 + number / fps)) < 1e-6 for number, at in enumerate(times))
    assert pace.slipped_s == 0
    assert pace.late == 0


@given(rates, bursts, st.lists(st.floats(0, 3), min_size=2, max_size=60), st.data())
def test_bursts_are_bounded(fps: float, burst: int, costs: list[float], data: st.DataObject) -> None:
    times, _ = played(fps, burst, costs)
    first = data.draw(st.integers(0, len(times) - 2))
    last = data.draw(st.integers(first + 1, len(times) - 1))
    window_s = times[last] - times[first]
    assert last - first <= window_s * fps + burst + 1 + 1e-3


@given(rates, st.integers(1, 8), st.floats(0, 10))
def test_a_hiccup_within_the_burst_costs_no_rate_and_a_longer_one_the_rest(fps: float, burst: int, hiccup: float) -> None:
    costs = [0.0] * 5 + [hiccup] + [0.0] * (burst + 20)
    times, pace = played(fps, burst, costs)
    slip = max(0.0, hiccup - (burst + 1) / fps)
    assert pace.slipped_s == pytest.approx(slip, abs=1e-6)
    assert times[-1] == pytest.approx(1000.0 + (len(costs) - 1) / fps + slip, abs=1e-6)


@given(st.floats(1, 60), st.lists(st.floats(0.001, 0.5), min_size=2, max_size=200))
def test_thinning_keeps_no_more_than_asked(fps: float, gaps: list[float]) -> None:
    thinning, now, kept = Thinning(fps), 0.0, []
    for gap in gaps:
        now += gap
        if thinning.keep(now):
            kept.append(now)
    for first in range(len(kept)):
        for last in range(first + 1, len(kept)):
            assert last - first <= (kept[last] - kept[first]) * fps + 2.2


@pytest.mark.parametrize(("camera", "asked", "expected"), [(30, 10, 100), (30, 30, 300), (25, 10, 100), (30, 60, 300), (30, None, 300)])
def test_thinning_reaches_the_rate_asked_for(camera: int, asked: int | None, expected: int) -> None:
    thinning = Thinning(asked)
    assert sum(thinning.keep(number / camera) for number in range(10 * camera)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("fps", [0.0, -1.0])
def test_a_rate_is_above_zero(fps: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pace(fps, start_s=0.0)
    with pytest.raises(ValueError, match="above 0"):
        Thinning(fps)


# ---- the window


def test_the_window_stays_small_where_answers_come_at_once_and_widens_on_a_long_way() -> None:
    near, far = Window(64, 1 << 30), Window(64, 1 << 30)
    for _ in range(200):
        near.enter(1)
        near.leave(1, acknowledged=True)
    assert near.allowed == FLOOR
    for _ in range(200):  # a long way: always as many under way as are allowed
        while far.admits(1):
            far.enter(1)
        far.leave(1, acknowledged=True)
    assert far.allowed > 4 * FLOOR


def test_a_silent_broker_does_not_widen_the_window() -> None:
    window = Window(64, 1 << 30)
    while window.admits(1):
        window.enter(1)
    assert window.frames_in_flight == FLOOR


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 20), st.integers(1, 200))
def test_the_window_holds_its_bounds(sizes: list[int], frames: int, size_limit: int) -> None:
    window, held = Window(frames, size_limit), []
    for size in sizes:
        if window.admits(size):
            window.enter(size)
            held.append(size)
        elif held:
            window.leave(held.pop(0), acknowledged=True)
        assert window.frames_in_flight == len(held) <= frames
        assert window.bytes_in_flight == sum(held) <= max(size_limit, max(held, default=0))


# ---- addresses

secrets = st.text(string.ascii_letters + string.digits + "@:/%$!#?&=;,.~-", min_size=8, max_size=24)


@given(st.sampled_from(["rtsp", "http", "RTSP", "srt"]), secrets, st.sampled_from(["", "?user=a&", "/a/b?"]))
def test_passwords_are_never_shown(scheme: str, password: str, tail: str) -> None:
    address = f"{scheme}://joe:{password}@cam.example:554/stream1{tail}"
    for text in (address, f"cannot open '{address}': Connection refused", f"401 for {password}", f"{address}; trying again"):
        shown = redact(text, address)
        assert password not in shown
        assert redact(shown, address) == shown
    assert redact(f"x '{address}'").count("joe") == 0
    assert password not in default_name(address)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://joe:s3cret@cam/1", "rtsp://***@cam/1"),
        ("rtsp://joe@cam/1: no route", "rtsp://***@cam/1: no route"),
        ("http://cam/video?user=joe&pwd=s3cret", "http://cam/video?***"),
        ("http://cam/video?pwd=s3cret: gone", "http://cam/video?***: gone"),
        ("rtsp://joe:p@ss/w:rd@cam/1", "rtsp://***@cam/1"),
        ("rtsp://cam/1: it ended", "rtsp://cam/1: it ended"),
        ("/videos/gate@home.mp4", "/videos/gate@home.mp4"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_kinds_of_sources() -> None:
    assert [kind_of(text) for text in ("0", "12", "./0", "a.mp4", "rtsp://cam", "HTTPS://cam/x", "C:\\a.mp4")] == [
        "camera",
        "camera",
        "file",
        "file",
        "url",
        "url",
        "file",
    ]
    with pytest.raises(InvalidAddress, match=r"file:// is not read.*rtsp"):
        kind_of("file:///etc/passwd")


@given(st.text(max_size=80))
def test_default_names_are_names(text: str) -> None:
    for address in (text, f"rtsp://joe:{'x' * 9}@{text}"):
        try:
            kind_of(address)
        except InvalidAddress:
            continue
        check_source(default_name(address))


@given(st.lists(st.sampled_from(["a", "b", "a-2", "x" * 64]), max_size=8))
def test_unique_names_are_names_and_differ(names: list[str]) -> None:
    made = unique(names)
    assert len(made) == len(set(made)) == len(names)
    for name in made:
        check_source(name)
