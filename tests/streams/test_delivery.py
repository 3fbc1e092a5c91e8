"""Delivery on a real broker: what becomes of a record whose work fails once, always, or not at all, and what is committed meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Kafka
from schemas.envelope import MAX_HEADER_BYTES, MAX_HEADERS, Envelope, check_bounds
from streams import delivery
from streams.batches import Batch, BatchSource
from streams.burial import bury, error_headers, letter_headers, of_the_error, stack_digest
from streams.clients import Clients
from streams.delivery import ATTEMPTS, Delivery, Emitted, MayPass, Rejected, backoff_s, may_pass
from streams.limits import DeadLetterLimit, TooManyDeadLetters
from streams.message import KafkaRecord
from streams.sink import Output, Sink, SinkBroken
from streams.suspects import Crashed
from streams.topology import Topic

LIMIT_S = 30.0


class Line:
    """An input, an output and dead letters, with a delivery between them, fed by a source of its own."""

    def __init__(self, rig: Any, work: Callable[[Line, KafkaRecord], Any], **settings: Any) -> None:
        self.rig = rig
        self.source, self.out = rig.topic("in"), rig.topic("out", **settings.pop("out", {}))
        self.dead = rig.topic("in.dlq", **settings.pop("dead", {}))
        self.group = f"{rig.prefix}group"
        self.work_on = work
        self.attempts = Counter[bytes]()
        self.sink = Sink(settings.pop("clients", rig.clients))
        self.failure: BaseException | None = None
        limit = settings.pop("limit", None)
        self.delivery = Delivery(self.sink, self.work, settings.pop("dead_letters", lambda _: self.dead), "test.agent", limit=limit)
        self.options = {"max_records": 50, "in_flight": 4, "commit_interval_s": 0.1, **settings}

    async def work(self, topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        for index, record in enumerate(records):
            self.attempts[record.value() or b""] += 1
            found = self.work_on(self, record)
            if isinstance(found, Rejected):
                yield msgspec.structs.replace(found, index=index)
            else:
                yield Emitted(index, tuple(Output(self.out, "", record.key(), value, [("n", b"1")]) for value in found))

    async def feed(self, batch: Batch) -> None:
        try:
            await self.delivery.run(batch)
        except Exception as error:
            self.failure = error
            raise

    def run(self, values: Sequence[Any]) -> Any:
        self.rig.put(self.source, values)
        return self.rig.Host(lambda: BatchSource(self.rig.clients, [self.source], self.group, self.feed, **self.options))

    def committed(self) -> int:
        return int(self.rig.committed(self.group, self.source).get(0, 0))

    def finish(self, count: int) -> None:
        self.rig.until(lambda: self.failure or self.committed() == count, "the commit of every record")
        assert self.failure is None
        self.sink.close()

    def settled(self, count: int) -> None:
        self.rig.until(lambda: sum(self.written().values()) >= count, "what can be finished")

    def written(self) -> Counter[bytes]:
        return Counter(row.value() for row in self.rig.rows(self.out))


def echo(_: Line, record: KafkaRecord) -> list[bytes]:
    return [record.value() or b""]


NUMBERS = [b"%d" % number for number in range(20)]


# ---- failures of one record


def test_a_failure_that_passes_loses_nothing_and_buries_nothing(rig: Any) -> None:
    failed: list[bytes] = []

    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if record.value() == b"7" and not failed:
            failed.append(b"7")
            raise RuntimeError("once")
        return echo(line, record)

    line = Line(rig, work)
    with line.run(NUMBERS):
        line.finish(20)
    assert set(line.written()) == set(NUMBERS)
    assert failed
    assert not rig.rows(line.dead)


def test_a_record_that_always_fails_becomes_a_dead_letter_and_nothing_else_does(rig: Any) -> None:
    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if record.value() == b"bad":
            raise RuntimeError("cannot be: ünlucky \ud800")
        return echo(line, record)

    line = Line(rig, work)
    values = [*NUMBERS[:11], (b"the key", b"bad", [("ce_id", b"cam-1/e/11"), ("x", None), ("x", b"\xff\x00")]), *NUMBERS[11:]]
    with line.run(values):
        line.finish(21)
    assert set(line.written()) == set(NUMBERS)
    assert line.attempts[b"bad"] >= ATTEMPTS
    letter, *more = rig.rows(line.dead)
    assert not more
    assert (letter.key(), letter.value()) == (b"the key", b"bad")
    assert letter.headers()[:3] == [("ce_id", b"cam-1/e/11"), ("x", None), ("x", b"\xff\x00")]
    found = {name: value.decode() for name, value in letter.headers()[3:]}
    (origin,) = (row for row in rig.rows(line.source) if row.value() == b"bad")
    assert found.pop("headwater.appended") == str(origin.timestamp()[1])
    assert found.pop("headwater.record") == "cam-1/e/11"  # by its own word
    digest = found.pop("headwater.stack.digest")
    assert len(digest) == 16
    stack = found.pop("__connect.errors.exception.stacktrace")
    assert "in work" in stack
    assert stack.rstrip().endswith("cannot be: ünlucky \\ud800")
    assert found == {
        "__connect.errors.topic": line.source.name,
        "__connect.errors.partition": "0",
        "__connect.errors.offset": "11",
        "__connect.errors.connector.name": "test.agent",
        "__connect.errors.stage": "TASK_PUT",
        "__connect.errors.exception.class.name": "builtins.RuntimeError",
        "__connect.errors.exception.message": "cannot be: ünlucky \\ud800",
    }


def test_a_rejected_record_is_buried_at_once_with_its_id(rig: Any) -> None:
    def work(line: Line, record: KafkaRecord) -> Any:
        if record.value() in (b"3", b"4"):
            return Rejected(0, ValueError("no such thing"), "cam-1/e/3")
        if record.value() == b"9" and line.attempts[b"9"] == 1:
            raise RuntimeError("once, after others were buried")
        return echo(line, record)

    line = Line(rig, work)
    with line.run(NUMBERS):
        line.finish(20)
    assert set(line.written()) == set(NUMBERS) - {b"3", b"4"}
    letters = rig.rows(line.dead)
    assert [letter.value() for letter in letters] == [b"3", b"4"]  # once each, though the batch was tried again
    assert line.attempts[b"3"] == line.attempts[b"4"] == 1
    headers = dict(letters[0].headers())
    assert headers["headwater.record"] == b"cam-1/e/3"
    assert headers["__connect.errors.stage"] == b"VALUE_CONVERTER"


def test_what_may_pass_is_tried_for_as_long_as_it_takes(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_S", (0.001, 0.002))

    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if record.value() == b"5" and line.attempts[b"5"] <= 30 * ATTEMPTS:
            raise MayPass("busy")
        return echo(line, record)

    line = Line(rig, work)
    with line.run(NUMBERS):
        line.finish(20)
    assert line.attempts[b"5"] == 30 * ATTEMPTS + 1
    assert line.written() == Counter(NUMBERS)  # what was finished before it is not done again
    assert not rig.rows(line.dead)


def test_work_that_forgets_a_record_fails_for_it(rig: Any) -> None:
    """Silence is never an answer."""
    line = Line(rig, echo)
    whole = line.work

    async def forgetful(topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        async for item in whole(topic, partition, records):
            if records[item.index].value() != b"13":
                yield item

    line.delivery.work = forgetful
    with line.run(NUMBERS):
        line.finish(20)
    assert set(line.written()) == set(NUMBERS) - {b"13"}
    assert [letter.value() for letter in rig.rows(line.dead)] == [b"13"]


def test_an_output_too_large_for_its_topic_buries_its_record_only(rig: Any) -> None:
    def work(line: Line, record: KafkaRecord) -> Any:
        if record.value() == b"2":
            return Rejected(0, ValueError("bad anyway"))
        return [b"." * 9000] if record.value() == b"8" else echo(line, record)

    line = Line(rig, work, out={"max_message_bytes": "4000"})
    with line.run(NUMBERS):
        line.finish(20)
    assert set(line.written()) == set(NUMBERS) - {b"8", b"2"}
    letters = {letter.value(): dict(letter.headers()) for letter in rig.rows(line.dead)}
    assert len(rig.rows(line.dead)) == 2
    assert set(letters) == {b"2", b"8"}
    assert letters[b"8"]["__connect.errors.exception.class.name"] == b"streams.sink.NotDelivered"


def test_a_dead_letter_too_large_for_its_topic_goes_without_its_value(rig: Any) -> None:
    """It must not block what comes after it, for ever."""

    def work(line: Line, record: KafkaRecord) -> Any:
        return Rejected(0, ValueError("bad")) if len(record.value() or b"") > 100 else echo(line, record)

    line = Line(rig, work, dead={"max_message_bytes": "20000"})
    with line.run([b"first", (b"key", b"." * 50_000, [("ce_id", b"cam-1/e/1")]), b"last"]):
        line.finish(3)
    (letter,) = rig.rows(line.dead)
    assert (letter.key(), letter.value()) == (b"key", None)
    headers = dict(letter.headers())
    assert headers["ce_id"] == b"cam-1/e/1"
    assert headers["headwater.value.omitted"].startswith(b"50000 bytes, sha256 ")
    assert set(line.written()) == {b"first", b"last"}


# ---- failures of the code, or of the broker


def test_too_many_failures_stop_the_worker_and_commit_nothing_beyond(rig: Any) -> None:
    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if int(record.value() or b"") >= 10:
            raise RuntimeError("the model is broken")
        return echo(line, record)

    line = Line(rig, work, limit=DeadLetterLimit(share=0.3, window=20, least=5), max_records=10, in_flight=1)
    with line.run([b"%d" % number for number in range(200)]) as host:
        rig.until(lambda: line.failure and host.crash, "the failure")
    assert isinstance(line.failure, TooManyDeadLetters)
    assert "of the last" in str(line.failure)
    assert host.crash is line.failure  # the source hears of it, and the worker with it
    assert 5 <= len(rig.rows(line.dead)) <= 10
    assert line.committed() <= 10


def test_a_missing_output_topic_stops_the_worker_and_commits_nothing(rig: Any, kafka: Kafka) -> None:
    hasty = Clients(msgspec.structs.replace(kafka, properties={"topic.metadata.propagation.max.ms": "300"}), "test")
    line = Line(rig, echo, clients=hasty)
    line.out = msgspec.structs.replace(line.out, name=f"{rig.prefix}nowhere")
    with line.run(NUMBERS):
        rig.until(lambda: line.failure, "the failure")
    assert isinstance(line.failure, SinkBroken)
    assert line.committed() == 0
    assert not rig.rows(line.dead)
    assert line.attempts[b"0"] == 1  # not the records' fault: they are not tried again and again


def test_a_missing_dead_letter_topic_stops_the_worker_at_once(rig: Any, kafka: Kafka) -> None:
    hasty = Clients(msgspec.structs.replace(kafka, properties={"topic.metadata.propagation.max.ms": "300"}), "test")
    line = Line(rig, lambda *_: Rejected(0, ValueError("bad")), clients=hasty)
    line.dead = msgspec.structs.replace(line.dead, name=f"{rig.prefix}nowhere")
    with line.run(NUMBERS):
        rig.until(lambda: line.failure, "the failure")
    assert isinstance(line.failure, SinkBroken)
    assert line.committed() == 0
    assert sum(line.attempts.values()) == 1


def test_what_the_work_started_ends_before_the_next_attempt(rig: Any) -> None:
    """Two attempts on one record side by side would take a source's frames out of order."""
    line = Line(rig, echo)
    running: list[str] = []

    async def work(topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        running.append("start")
        assert running.count("start") - running.count("end") == 1
        try:
            # The second yields an output that cannot be sent: the failure comes from outside the generator.
            headers: Any = "no headers" if running.count("start") < 3 else []
            for index in range(len(records)):
                yield Emitted(index, (Output(line.out, "", None, records[index].value(), headers),))
        finally:
            running.append("end")

    line.delivery.work = work
    with line.run([b"only"]):
        line.finish(1)
    assert running == ["start", "end"] * 3
    assert set(line.written()) == {b"only"}


def test_a_batch_whose_worker_is_cancelled_is_given_back(rig: Any) -> None:
    line = Line(rig, echo)
    calls = threading.Semaphore(0)

    async def work(topic: Topic, partition: int, records: Sequence[KafkaRecord]) -> AsyncIterator[Emitted | Rejected]:
        calls.release()
        await asyncio.Event().wait()
        yield Emitted(0)

    line.delivery.work = work
    batches: list[Batch] = []
    tasks: list[asyncio.Future[None]] = []

    async def feed(batch: Batch) -> None:
        batches.append(batch)
        tasks.append(asyncio.ensure_future(line.delivery.run(batch)))

    line.feed = feed  # type: ignore[method-assign]
    line.options["drain_s"] = 0.1
    with line.run([b"only"]) as host:
        assert calls.acquire(timeout=LIMIT_S)
        host.loop.call_soon_threadsafe(tasks[0].cancel)
        rig.until(tasks[0].done, "the cancellation")
        assert not batches[0].taken
        assert not batches[0].finished
    assert line.committed() == 0


# ---- without a broker


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


class Message:
    def __init__(self, headers: list[tuple[str, bytes | None]], key: bytes | None = None) -> None:
        self._headers, self._key = headers, key

    def topic(self) -> str:
        return "t" * 249

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return (1 << 63) - 1

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return b"v"

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, 0


def raised(error: Exception, depth: int = 0) -> Exception:
    try:
        if depth:
            raise raised(error, depth - 1)
        raise error
    except Exception as found:  # noqa: BLE001 - any
        return found


Errors = st.one_of(
    st.builds(ValueError, st.text(max_size=3000)),
    st.builds(ValueError, st.text(alphabet=st.characters(categories=["Cs"]), max_size=2000)),
    st.builds(UnicodeDecodeError, st.just("utf-8"), st.binary(max_size=50), st.just(0), st.just(1), st.text(max_size=20)),
    st.just(Odd()),
    st.builds(KeyError, st.binary(max_size=5000)),
    st.builds(type("Ü" * 300, (RuntimeError,), {}), st.text(max_size=10)),
)
Names = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
HeaderLists = st.lists(
    st.tuples(
        Names | st.sampled_from(["ce_id", "ce_source", "content-type", "__connect.errors.topic"]), st.none() | st.binary(max_size=9000)
    ),
    max_size=90,
)


@given(error=Errors, depth=st.integers(0, 40), agent=Names, record=st.none() | st.text(max_size=600))
def test_error_headers_are_bounded_utf8_whatever_the_error_says(error: Exception, depth: int, agent: str, record: str | None) -> None:
    headers = error_headers(Message([]), raised(error, depth), agent, record)
    for _, value in headers:
        value.decode()
    assert sum(len(name) + len(value) for name, value in headers) < 12_000
    assert len({name for name, _ in headers}) == len(headers) <= 10
    found = dict(headers)
    assert found["__connect.errors.topic"] == b"t" * 249
    assert found["__connect.errors.offset"] == str((1 << 63) - 1).encode()
    assert 0 < len(found["__connect.errors.exception.stacktrace"]) <= 4000


@given(few=HeaderLists, flood=st.integers(0, 80), size=st.integers(0, 9000), error=Errors)
def test_dead_letters_hold_the_bounds_of_headers(few: list[tuple[str, bytes | None]], flood: int, size: int, error: Exception) -> None:
    """Otherwise nobody could read them; what identifies the record is what is kept."""
    headers = [*few, *[("flood", b"." * size)] * flood]
    found = letter_headers(Message(headers), raised(error), "agent", None)
    check_bounds([*found, ("headwater.value.omitted", b"." * 90)])
    own = [pair for pair in headers if not of_the_error(pair[0])]
    kept = [pair for pair in found if not of_the_error(pair[0]) and pair[0] != "headwater.appended"]
    rest = iter(own)
    assert all(pair in rest for pair in kept)  # in their order, unchanged
    omitted = int(dict(found).get("headwater.headers.omitted") or 0)
    assert omitted == len(own) - len(kept)
    if len(own) <= MAX_HEADERS - 12 and sum(len(name.encode()) + len(value or b"") for name, value in own) <= MAX_HEADER_BYTES - 13_000:
        assert not omitted


def test_the_envelope_is_kept_before_other_headers() -> None:
    envelope = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"cam-1/e/1"),
        ("ce_source", b"cam-1"),
        ("ce_type", b"t"),
        ("ce_time", b"2026-01-31T12:00:00Z"),
    ]
    flood = [(f"x{number}", b"." * 2000) for number in range(60)]
    found = letter_headers(Message([*flood, *envelope]), ValueError("bad"), "agent", None)
    read = Envelope.from_headers(found)
    assert read is not None
    assert (read.id, read.source) == ("cam-1/e/1", "cam-1")
    again = letter_headers(Message(found), ValueError("worse"), "agent", None)  # a dead letter that was replayed and failed again
    assert dict(again)["__connect.errors.exception.message"] == b"worse"
    assert [name for name, _ in again].count("__connect.errors.exception.message") == 1


def test_the_limit_of_dead_letters_looks_at_a_share_of_recent_records() -> None:
    limit = DeadLetterLimit(share=0.5, window=10, least=3)
    for failed in (True, True, False, False, False, True, False, True):  # 4 of 8: at least 3, and not more than half
        limit.count(failed)
    with pytest.raises(TooManyDeadLetters, match="5 of the last 9"):
        limit.count(True)
    forgiving = DeadLetterLimit(share=0.5, window=10, least=3)
    for _ in range(10):
        for failed in (True, True, False, False, False, False):
            forgiving.count(failed)
    few = DeadLetterLimit(share=0.0, window=10, least=3)
    few.count(True)
    few.count(True)  # too few to tell


@given(attempt=st.integers(0, 10**6))
def test_the_wait_between_attempts_is_bounded_for_ever(attempt: int) -> None:
    """An outage may last for days."""
    assert 0 < backoff_s(attempt) <= 5.0


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (MayPass("busy"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, retriable=True)), True),
        (KafkaException(KafkaError(KafkaError.INVALID_RECORD)), False),
        (KafkaException(), False),
        (KafkaException("text"), False),
        (ValueError("bad"), False),
        (RuntimeError("bug"), False),
        (SinkBroken("no topic"), False),
    ],
)
def test_which_failures_may_pass(error: Exception, passing: bool) -> None:
    assert may_pass(error) is passing


def test_bury_is_what_cold_agents_use_too(rig: Any) -> None:
    dead = rig.topic("dlq")
    sink = Sink(rig.clients)
    asyncio.run(bury(sink, dead, Message([("a", b"1")], b"k"), ValueError("bad"), "agent", "cam-1/e/1"))
    sink.close()
    (letter,) = rig.rows(dead)
    assert (letter.key(), letter.value()) == (b"k", b"v")
    assert dict(letter.headers())["headwater.record"] == b"cam-1/e/1"


# ---- failures that are not what they look like


class Panic(BaseException):
    """As Rust libraries raise it: past `Exception`."""


@pytest.mark.parametrize("error", [Panic("in a library"), asyncio.CancelledError("a pool was shut down")])
def test_a_record_that_raises_past_exception_does_not_end_the_agent(rig: Any, error: BaseException) -> None:
    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if record.value() == b"7":
            raise error
        return echo(line, record)

    line = Line(rig, work)
    with line.run(NUMBERS):
        line.finish(20)
    assert set(line.written()) == set(NUMBERS) - {b"7"}
    assert [letter.value() for letter in rig.rows(line.dead)] == [b"7"]


def test_a_cause_that_never_passes_while_others_go_on_is_the_records(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one record would hold its partition up for ever."""
    monkeypatch.setattr(delivery, "BACKOFF_S", (0.001, 0.002))
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.05)
    alive = threading.Event()

    def work(line: Line, record: KafkaRecord) -> list[bytes]:
        if record.value() == b"5":
            if line.attempts[b"5"] > 5:
                alive.set()
            raise TimeoutError("for this one, always")
        return echo(line, record)

    line = Line(rig, work, max_records=1)
    sent = list(NUMBERS)
    with line.run(NUMBERS):
        rig.until(alive.is_set, "attempts on the bad one")
        line.settled(len(NUMBERS) - 1)
        tries = line.attempts[b"5"]
        rig.until(lambda: line.attempts[b"5"] > tries + 300, "many attempts, with nothing else to do")  # that alone says nothing
        assert not rig.rows(line.dead)

        def more() -> bool:
            sent.append(b"1%03d" % len(sent))
            rig.put(line.source, sent[-1:])
            return bool(line.committed() > 6)

        rig.until(more, "the end of the bad one while others come")
        line.finish(len(sent))
    assert set(line.written()) == set(sent) - {b"5"}
    assert [letter.value() for letter in rig.rows(line.dead)] == [b"5"]


def test_several_failures_may_pass_if_each_may() -> None:
    assert may_pass(ExceptionGroup("several", [MayPass("busy"), TimeoutError()]))
    assert not may_pass(ExceptionGroup("several", [MayPass("busy"), ValueError("bad")]))


def test_a_record_without_an_id_is_named_after_its_place(rig: Any) -> None:
    dead = rig.topic("dlq")
    sink = Sink(rig.clients)
    places = {"t" * 249: ("cluster", "uuid")}
    origin = b"kafka/old/uuid/7/8"
    for headers in ([], [("headwater.origin", origin)], [("ce_id", b"cam-1/e/1")], [("ce_id", b"no id")]):
        asyncio.run(bury(sink, dead, Message(headers), ValueError("bad"), "agent", None, places))
    sink.close()
    names = [dict(letter.headers()).get("headwater.record") for letter in rig.rows(dead)]
    assert names == [f"kafka/cluster/uuid/3/{(1 << 63) - 1}".encode(), origin, b"cam-1/e/1", None]


def test_one_kind_of_error_has_one_digest_wherever_it_runs() -> None:
    def fails(word: str) -> Exception:
        return raised(ValueError(word))

    assert stack_digest(fails("a")) == stack_digest(fails("b"))
    assert stack_digest(fails("a")) != stack_digest(raised(KeyError("a")))
    here, there = Crashed("x"), Crashed("y")
    here.stack = 'Fatal Python error\n  File "/a/lib/x.py", line 5 in look\n  File "/a/lib/y.py", line 9 in run'
    there.stack = here.stack.replace("/a/", "/b/").replace("line 5", "line 6")
    assert stack_digest(here) == stack_digest(there)
    there.stack = there.stack.replace("look", "other")
    assert stack_digest(here) != stack_digest(there)
