"""The sink: receipts that come back only when the broker has the outputs, refusals, and the laws of the broker's clock."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Kafka
from streams.clients import Clients
from streams.partition import partition_of
from streams.sink import BrokerClock, NotDelivered, Output, Receipt, Sink, SinkBroken

LIMIT_S = 30.0
IMPATIENT = {"topic.metadata.propagation.max.ms": "500"}  # librdkafka waits for a topic that was made just now


def outputs(topic: Any, count: int, size: int = 10) -> list[Output]:
    return [Output(topic, f"cam-{number % 7}", f"{number}", b"%d" % number + b"." * size, [("n", b"1")]) for number in range(count)]


def test_a_receipt_comes_when_the_broker_has_every_output(rig: Any) -> None:
    topic = rig.topic("out", partitions=3)
    sink = Sink(rig.clients)
    wanted = outputs(topic, 500)

    async def main() -> int:
        await sink.write(wanted)
        return len(rig.rows(topic))

    assert asyncio.run(main()) == 500
    rows = rig.rows(topic)
    assert {(row.key(), row.value(), tuple(row.headers())) for row in rows} == {(o.key.encode(), o.value, (("n", b"1"),)) for o in wanted}
    for row in rows:
        assert row.partition() == partition_of(f"cam-{int(row.key()) % 7}", 3)
        assert row.timestamp()[0] == 2  # the broker's time, which is what the clock learns from
    assert abs(sink.clock.now_ms() - time.time() * 1000) < 1000  # one machine: its clock and the broker's are one
    sink.close()


def test_outputs_wait_for_a_silent_broker(far: Any, far_rig: Any) -> None:
    """No receipt comes while the way is black; when it is open again they all come, and every output is there once."""
    topic = far_rig.topic("out")
    sink = Sink(Clients(msgspec.structs.replace(far.wan, properties={"socket.timeout.ms": "500"}), "test"))

    async def main() -> None:
        await sink.write(outputs(topic, 1))
        far.proxy.cut()
        waiting = asyncio.ensure_future(sink.write(outputs(topic, 50)))
        end = time.monotonic() + 1.5  # the requests time out and are sent again
        while time.monotonic() < end:
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert len(far_rig.rows(topic)) == 1
        far.proxy.restore()
        await asyncio.wait_for(waiting, LIMIT_S)

    asyncio.run(main())
    sink.close()
    assert len(far_rig.rows(topic)) == 51


def test_an_output_too_large_for_its_topic_is_refused_and_no_other(rig: Any) -> None:
    topic = rig.topic("out", max_message_bytes="2000")
    sink = Sink(rig.clients)

    async def main() -> None:
        await sink.write(outputs(topic, 3))
        with pytest.raises(NotDelivered, match="too large"):
            await sink.write(outputs(topic, 1, size=5000))  # by the broker
        with pytest.raises(NotDelivered, match="too large"):
            await sink.write(outputs(topic, 1, size=21 << 20))  # by the client
        await sink.write(outputs(topic, 3))

    asyncio.run(main())
    sink.close()
    assert len(rig.rows(topic)) == 6


def test_a_missing_topic_breaks_the_sink(rig: Any, kafka: Kafka) -> None:
    missing = msgspec.structs.replace(rig.topic("out"), name=f"{rig.prefix}nowhere")
    sink = Sink(Clients(msgspec.structs.replace(kafka, properties=IMPATIENT), "test"))

    async def main() -> None:
        with pytest.raises(SinkBroken, match="UNKNOWN_TOPIC"):
            await sink.write(outputs(missing, 2))

    asyncio.run(main())
    with pytest.raises(SinkBroken, match="UNKNOWN_TOPIC"):
        sink.write_blocking(outputs(missing, 2))
    sink.post(outputs(missing, 1))  # an explanation: it is logged
    sink.close()


def test_a_partition_that_is_not_there_breaks_the_sink(rig: Any, kafka: Kafka) -> None:
    """The topology says more partitions than the topic has."""
    topic = rig.topic("out", partitions=2)
    wrong = msgspec.structs.replace(topic, partitions=64)
    sink = Sink(Clients(msgspec.structs.replace(kafka, properties=IMPATIENT), "test"))

    async def main() -> None:
        with pytest.raises(SinkBroken):
            await sink.write(outputs(wrong, 7))

    asyncio.run(main())
    sink.close()


def test_writing_from_a_thread_waits_for_the_broker(rig: Any) -> None:
    topic = rig.topic("out")
    sink = Sink(rig.clients)
    sink.write_blocking(outputs(topic, 20))
    assert len(rig.rows(topic)) == 20
    sink.close()


def test_reports_after_the_end_of_the_loop_do_no_harm(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that ends with outputs under way: their reports find a closed loop."""
    topic = rig.topic("out")
    sink = Sink(rig.clients, linger_ms=300)

    async def main() -> None:
        receipt = sink.open()
        await sink.send(outputs(topic, 5), receipt)
        receipt.report(None)  # as `wait` does; nobody is there to see the last one

    asyncio.run(main())
    sink.close()
    assert len(rig.rows(topic)) == 5
    assert "could not be handled" not in caplog.text


# ---- receipts, without a broker


@given(errors=st.lists(st.sampled_from([None, None, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED]), max_size=20))
def test_a_receipt_waits_for_the_last_report_and_tells_the_first_refusal(errors: list[int | None]) -> None:
    async def main() -> None:
        receipt = Receipt(asyncio.get_running_loop())
        for _ in errors:
            receipt.expect()
        waiting = asyncio.ensure_future(receipt.wait())
        thread = threading.Thread(target=lambda: [receipt.report(None if code is None else KafkaError(code)) for code in errors[:-1]])
        thread.start()
        thread.join()
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.done() == (not errors)
        if errors:
            receipt.report(None if errors[-1] is None else KafkaError(errors[-1]))
        first = next((code for code in errors if code is not None), None)
        if first is None:
            await waiting
        else:
            with pytest.raises(NotDelivered if first == KafkaError.MSG_SIZE_TOO_LARGE else SinkBroken):
                await waiting

    asyncio.run(main())


# ---- the broker's clock

Trip = st.tuples(st.floats(0, 50), st.floats(0.0001, 20), st.floats(0, 1))  # pause before it, its length, when in it the append was


@given(difference_s=st.floats(-1e6, 1e7), drift=st.floats(-0.0002, 0.0002), trips=st.lists(Trip, min_size=1, max_size=30))
def test_the_estimate_is_as_good_as_the_best_report_allows(
    difference_s: float, drift: float, trips: list[tuple[float, float, float]]
) -> None:
    """Half the way of a report bounds its error, and clocks run apart: no report makes the estimate worse than any before it allows."""
    clock = BrokerClock()
    now_s = 1000.0
    bounds: list[tuple[float, float]] = []  # of each report: its error and its time
    for pause, length, share in trips:
        sent = now_s + pause
        at = sent + share * length
        now_s = sent + length
        clock.observe(sent, now_s, math.floor((at + difference_s + drift * at) * 1000))
        bounds.append((length * 500 + 2, now_s))
        best = min(error + 0.2 * (now_s - when + length) for error, when in bounds)
        assert abs(clock._difference_ms - (difference_s + drift * now_s) * 1000) <= best + 1


@given(
    before_s=st.floats(-1e6, 1e6),
    step_s=st.floats(5, 1e6) | st.floats(-1e6, -5),
    ways=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=9),
)
def test_a_broker_clock_that_is_set_is_noticed_at_the_next_report(before_s: float, step_s: float, ways: list[float]) -> None:
    """Otherwise every frame of the next minute would be too old, or none."""
    clock = BrokerClock()
    now_s = 1000.0
    for way in ways:
        clock.observe(now_s, now_s + way, round((now_s + way / 2 + before_s) * 1000))
        now_s += 1
    clock.observe(now_s, now_s + 0.8, round((now_s + 0.4 + before_s + step_s) * 1000))
    assert abs(clock._difference_ms - (before_s + step_s) * 1000) <= 402


def test_an_age_is_measured_by_the_broker_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [500.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = BrokerClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1000  # until the first report: this machine's clock
    clock.observe(499.9, 500.0, 7_000_000)
    now[0] = 502.0
    assert clock.age_s(7_000_000) == pytest.approx(2.05, abs=0.01)
    assert clock.age_s(8_000_000) == 0.0
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets this machine's clock
    assert clock.age_s(7_000_000) == pytest.approx(2.05, abs=0.01)
