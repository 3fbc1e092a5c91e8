"""The journal and what follows from it: what a killed process leaves, what torn and foreign files do, who is suspected, who proven."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import journal as journals
from streams.app import _protected
from streams.journal import SIZE, SLOTS, Journal, JournalUnavailable, Left, Remains, Spot, State
from streams.limits import DeadLetterLimit, TooManyDeadLetters
from streams.quarantine import WAIT_S, Quarantine, _Gate
from streams.suspects import FORGET_MS, MAX_SUSPECTS, Crashed, Suspect, Suspects, chunk_of, count

ROOT = str(Path(__file__).parents[2])


class Record:
    def __init__(self, offset: int, topic: str = "frames", partition: int = 0) -> None:
        self._offset, self._topic, self._partition = offset, topic, partition

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000 + self._offset


def records(*offsets: int) -> Any:
    return [Record(offset) for offset in offsets]


def spots(*offsets: int) -> tuple[Spot, ...]:
    return tuple(Spot("frames", 0, offset, 1_000 + offset) for offset in offsets)


# Marks some records, ends the work on one of them, says so, and waits for its end.
HOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from streams.journal import Journal
from tests_record import Record
journal = Journal(Path(sys.argv[1]), "leaf")
journal.begin()
marked = journal.mark("frames", 0, [Record(offset) for offset in (3, 4, 7)], alone=False)
marked.done(1)
other = journal.mark("frames", 0, [Record(9)], alone=False)
other.done(0)
ended = journal.mark("frames", 0, [Record(11)], alone=False)
ended.close()
if sys.argv[2] == "stopping":
    journal.stopping()
if sys.argv[2] == "close":
    marked.close(); other.close(); journal.close()
print("marked", flush=True)
sys.stdin.read()
"""


# A cold handler that dies.
COLD = """
import asyncio, sys, types
from pathlib import Path
sys.path.insert(0, {root!r})
from streams.app import _protected
from streams.quarantine import Quarantine
record = types.SimpleNamespace(topic=lambda: "frames", partition=lambda: 0, offset=lambda: 5, timestamp=lambda: (2, 1005))
async def handle(_):
    exec({then!r})
asyncio.run(_protected(handle, types.SimpleNamespace(name="frames"), Quarantine(Path(sys.argv[1]), "leaf"))(record))
"""


def holder(folder: Path, then: str = "run") -> subprocess.Popen[str]:
    source = Path(__file__).read_text()
    (folder / "tests_record.py").write_text(source[source.index("class Record:") : source.index("def records(")])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(root=ROOT), str(folder), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "marked\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def gone(journal: Journal) -> None:
    """As if its process had died."""
    fcntl.flock(journal._file, fcntl.LOCK_UN)
    os.close(journal._file)


def test_kill_9_keeps_what_was_in_work_and_only_that(tmp_path: Path) -> None:
    killed(holder(tmp_path))
    next_one = Journal(tmp_path, "leaf")
    ((path, remains),) = next_one.remains()
    assert path == next_one.path
    assert remains.passes == (Left(spots(3, 7), False, None),)
    assert (remains.state, remains.rebooted, remains.crash) == (State.RUNNING, False, "")
    next_one.begin()
    assert not list(next_one.remains())
    next_one.close()
    assert not list(Journal(tmp_path, "leaf").remains())


def test_workers_of_one_folder_have_files_of_their_own_and_read_those_of_the_dead_only(tmp_path: Path) -> None:
    first, second = holder(tmp_path), holder(tmp_path)
    mine = Journal(tmp_path, "leaf")
    mine.begin()
    assert mine.path.name == "leaf.2.journal"
    assert not list(mine.remains())
    killed(second)
    assert [path.name for path, _ in mine.remains()] == ["leaf.1.journal"]
    assert not list(mine.remains())  # what was given is taken out
    killed(first)
    assert [path.name for path, _ in mine.remains()] == ["leaf.0.journal"]
    assert not list(Journal(tmp_path, "resolver").remains())
    mine.close()


@pytest.mark.parametrize(("then", "state"), [("stopping", State.STOPPING), ("close", None)])
def test_how_the_process_ended_is_told(tmp_path: Path, then: str, state: State | None) -> None:
    killed(holder(tmp_path, then))
    assert [remains.state for _, remains in Journal(tmp_path, "leaf").remains()] == ([] if state is None else [state])


@settings(deadline=None)
@given(data=st.data())
def test_a_torn_or_foreign_file_is_never_believed_nor_in_the_way(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    journal = Journal(folder, "leaf")
    journal.begin()
    journal.mark("frames", 0, records(3, 4), alone=True)
    content = bytearray(journal.map[:])
    gone(journal)
    kind = data.draw(st.sampled_from(["flip", "cut", "foreign", "zero tail"]))
    if kind == "flip":
        slot = 4096
        parts = [range(72), range(slot, slot + 40), *(range(slot + at, slot + at + 17) for at in (288, 800, 4896))]
        at = data.draw(st.sampled_from([byte for part in parts for byte in part]))
        content[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, SIZE - 1)) :]
    elif kind == "foreign":
        content[:] = data.draw(st.binary(max_size=200)) * data.draw(st.integers(1, 3000))
    else:
        at = data.draw(st.integers(0, SIZE))
        content[at:] = bytes(SIZE - at)
    journal.path.write_bytes(content)
    fresh = Journal(folder, "leaf")
    found = [left for _, remains in fresh.remains() for left in remains.passes]
    for left in found:  # what is believed is true: a mark of a record may be lost, a record is never made up
        assert set(left.spots) <= set(spots(3, 4))
    fresh.begin()
    fresh.mark("frames", 0, records(8), alone=False)
    assert (fresh.path, fresh.path.stat().st_size) == (journal.path, SIZE)
    gone(fresh)


def test_half_a_slot_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies after a slot was written and before it was said to be in use."""
    journal = Journal(tmp_path, "leaf")
    journal.begin()

    class Dies:
        def pack_into(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journals, "_BUSY", Dies())
        with pytest.raises(KeyboardInterrupt):
            journal.mark("frames", 0, records(3), alone=False)
    gone(journal)
    ((_, remains),) = Journal(tmp_path, "leaf").remains()
    assert remains.passes == ()


def test_every_slot_can_be_used_again_and_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "leaf")
    journal.begin()
    for _ in range(3):
        marked = [journal.mark("t" * 249, 5, records(*range(journals.RECORDS)), alone=False) for _ in range(SLOTS)]
        for one in marked:
            one.close()
            one.close()  # a second time is no harm
    journal.close()


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(JournalUnavailable, match="data_dir"):
        Journal(tmp_path, "leaf")


# ---- suspects, without files


def death(*lefts: Left, state: State = State.RUNNING, crash: str = "", memory: bool = False, rebooted: bool = False) -> Remains:
    return Remains("life", state, rebooted, memory, crash, lefts)


def after(*deaths: Remains) -> dict[int, Suspect]:
    known: list[Suspect] = []
    for number, remains in enumerate(deaths):
        known = count(known, remains, number)
    return {each.spot.offset: each for each in known}


SEGFAULT = 'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File "x.py", line 1 in look\n'
ALONE = Left(spots(5), True, None)


@pytest.mark.parametrize(
    ("deaths", "proven", "error"),
    [
        ([death(ALONE)], False, "Killed"),
        ([death(ALONE)] * 3, False, "Killed"),
        ([death(ALONE)] * 4, True, "Killed"),
        ([death(ALONE, crash=SEGFAULT), death(ALONE), death(ALONE)], False, "Crashed"),
        ([death(ALONE, crash=SEGFAULT)], False, "Crashed"),
        ([death(ALONE, crash=SEGFAULT)] * 2, True, "Crashed"),
        ([death(ALONE, memory=True)] * 2, True, "OutOfMemory"),
        ([death(ALONE, crash="Timeout (0:00:30)!\n")] * 2, True, "Hung"),
        ([death(Left(spots(4, 5), False, spots(5)[0]), crash="Hung: no answer")], True, "Hung"),
        ([death(Left(spots(4, 5), False, None), crash=SEGFAULT)] * 50, False, "Crashed"),  # never alone: never proven
        ([death(Left(spots(5), False, None), Left(spots(9), False, None))] * 50, False, "Killed"),
        ([death(ALONE, state=State.STOPPING)] * 50, False, "Killed"),  # told to stop, and killed by who had no patience
        ([death(ALONE, rebooted=True)] * 50, False, "Killed"),
    ],
)
def test_what_is_proof(deaths: list[Remains], proven: bool, error: str) -> None:
    suspect = after(*deaths)[5]
    assert suspect.proven is proven
    assert type(suspect.error()).__name__ == error
    if 4 in after(*deaths):
        assert not after(*deaths)[4].proven


def test_a_suspect_says_where_it_died() -> None:
    error = after(*[death(ALONE, crash=SEGFAULT)] * 2)[5].error()
    assert "ended 2 times" in str(error)
    assert "Segmentation fault" in str(error)
    assert "in look" in error.stack


def test_suspects_are_bounded_and_forgotten() -> None:
    many = [Left(tuple(Spot("t", 0, offset, 0) for offset in range(start, start + 512)), False, None) for start in range(0, 8192, 512)]
    known = count([Suspect(spots(1)[0], 0, fatal=1)], death(*many), 5)
    assert len(known) == MAX_SUSPECTS
    assert known[0].spot == spots(1)[0]  # who is suspected most is kept
    assert {each.spot.topic for each in count(known, death(), FORGET_MS + 1)} == {"t"}
    assert not count(known, death(), FORGET_MS + 6)


@pytest.mark.parametrize(("among", "together"), [(1, 1), (32, 1), (64, 1), (65, 2), (4000, 63)])
def test_few_suspects_are_worked_on_one_by_one_and_many_in_few_passes(among: int, together: int) -> None:
    assert chunk_of(Suspect(spots(1)[0], 0, among=among)) == together


@pytest.mark.parametrize(
    "next_kill_ms",
    [
        pytest.param(lambda dice, life: dice.expovariate(1 / 1500), id="at random"),
        pytest.param(lambda dice, life: 10.0 if life % 20 else 10_000.0, id="in step with the start"),
        pytest.param(lambda dice, life: 2000.0 if life % 20 else 10_000.0, id="in step with the waiting"),
    ],
)
def test_kills_from_outside_condemn_no_innocent(next_kill_ms: Callable[[random.Random, int], float]) -> None:
    """A model of thousands of lives: 40 records of 1 to 40 ms, two in work or a suspect alone, and a process that is killed."""
    dice = random.Random(7)
    condemned = lives = 0
    for _ in range(200):  # runs, each to the last record
        left, known = list(range(40)), dict[int, Suspect]()
        work_ms = {offset: dice.uniform(1, 40) for offset in left}

        def dies(*lefts: Left, known: dict[int, Suspect] = known) -> None:
            found = count(known.values(), death(*lefts), 0)
            known.clear()
            known.update({each.spot.offset: each for each in found})

        while left:
            lives += 1
            kill_ms, now_ms = next_kill_ms(dice, lives), 0.0
            while left:
                suspect = known.get(left[0])
                batch = left[:1] if suspect else [offset for offset in left[:2] if offset not in known]
                if suspect is not None and suspect.killed:
                    now_ms += dice.uniform(*WAIT_S) * 1000
                    if now_ms >= kill_ms:
                        dies()  # nothing was in work
                        break
                now_ms += max(work_ms[offset] for offset in batch)
                if now_ms >= kill_ms:
                    dies(Left(spots(*batch), suspect is not None, None))
                    break
                left = left[len(batch) :]
                for offset in batch:
                    known.pop(offset, None)
            condemned += any(each.proven for each in known.values())
    assert lives >= 200
    assert condemned == 0


# ---- suspects in files


def test_suspects_are_shared_by_the_workers_of_a_folder_and_cleared_for_all(tmp_path: Path) -> None:
    killed(holder(tmp_path))
    mine = Journal(tmp_path, "leaf")
    first = Suspects(mine)
    assert len(first.look()) == 1
    mine.begin()
    assert not first.look()
    other = Journal(tmp_path, "leaf")
    other.begin()
    second = Suspects(other)
    second.look()
    assert [second.get(spot) is not None for spot in spots(3, 4, 7)] == [True, False, True]
    first.clear(spots(3))
    second.look()
    assert [second.get(spot) is not None for spot in spots(3, 7)] == [False, True]
    second.path.write_bytes(b"{torn")
    second.look()
    assert not len(second)
    mine.close()
    other.close()


def test_a_death_counts_once_though_its_file_is_read_twice(tmp_path: Path) -> None:
    """The reader may die between keeping the suspects and emptying the file."""
    killed(holder(tmp_path))
    journal = Journal(tmp_path, "leaf")
    for _ in range(3):
        Suspects(journal).look()  # `begin` would empty it
    suspects = Suspects(journal)
    suspects.look()
    found = suspects.get(spots(3)[0])
    assert found is not None
    assert found.deaths == 1


def quarantine(folder: Path) -> Quarantine:
    return Quarantine(folder, "leaf", process=False)


async def portions(of: Quarantine, batch: Sequence[Any]) -> list[tuple[list[int], bool]]:
    return [([record.offset() for record in portion], alone) async for portion, alone in of.portions("frames", 0, batch)]


def test_suspects_stand_apart_in_their_order(tmp_path: Path) -> None:
    killed(holder(tmp_path))

    async def main() -> None:
        found = quarantine(tmp_path)
        batch = records(*range(2, 10))
        assert await portions(found, batch) == [([2], False), ([3], True), ([4, 5, 6], False), ([7], True), ([8, 9], False)]
        async with found.work("frames", 0, records(3), alone=True):
            pass
        assert await portions(found, batch) == [([2, 3, 4, 5, 6], False), ([7], True), ([8, 9], False)]
        async with found.work("frames", 0, records(7), alone=True):
            pass
        assert await portions(found, batch) == [(list(range(2, 10)), False)]
        assert await portions(found, records(*range(1100))) == [
            (list(range(512)), False),
            (list(range(512, 1024)), False),
            (list(range(1024, 1100)), False),
        ]
        found.close()

    asyncio.run(main())


def test_a_cold_handler_is_not_called_for_a_record_that_is_proven_to_kill(tmp_path: Path, declared: Callable[..., Any]) -> None:
    for _ in range(3):  # deaths in a handler: one unseen, then two with nothing else in work
        child = subprocess.run(
            [sys.executable, "-c", COLD.format(root=ROOT, then="import os; os.abort()"), str(tmp_path)], capture_output=True, timeout=60
        )
        assert child.returncode == -signal.SIGABRT, child.stderr.decode()

    async def main() -> None:
        found, handled = quarantine(tmp_path), []

        async def handle(record: Any) -> None:
            handled.append(record.offset())

        guarded = _protected(handle, declared("frames"), found)
        await guarded(Record(1))  # type: ignore[arg-type]
        with pytest.raises(Crashed):
            await guarded(Record(5))  # type: ignore[arg-type]
        found.buried(Record(5))  # type: ignore[arg-type]
        await guarded(Record(5))  # type: ignore[arg-type]  # read again before its place was committed
        assert handled == [1]
        found.close()

    asyncio.run(main())


def test_the_gate_lets_one_alone_and_nobody_starve() -> None:
    async def main() -> None:
        gate, inside, order = _Gate(3), 0, []

        async def enter(name: str, alone: bool) -> None:
            nonlocal inside
            async with gate.entered(alone):
                inside += 1
                order.append(name)
                assert inside == 1 if alone else inside <= 3
                await asyncio.sleep(0.001)
                inside -= 1

        tasks = [asyncio.ensure_future(enter(f"{number}", number % 5 == 2)) for number in range(30)]
        await asyncio.sleep(0)
        tasks[7].cancel()  # one that wants to be alone, while it waits
        tasks[11].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert order == [str(number) for number in range(30) if number not in (7, 11)]
        async with gate.entered(True):  # nothing was left locked
            pass

    asyncio.run(main())


# ---- step 7 over restarts


def test_the_limit_goes_on_counting_after_a_restart() -> None:
    memory = memoryview(bytearray(3000))
    first = DeadLetterLimit(share=0.5, window=100, least=10, memory=memory)
    for _ in range(9):
        first.count(True)
    again = DeadLetterLimit(share=0.5, window=100, least=10, memory=memory)
    with pytest.raises(TooManyDeadLetters):
        again.count(True)


def test_after_the_limit_was_passed_few_failures_stop_the_worker_again() -> None:
    memory = memoryview(bytearray(3000))
    broken = DeadLetterLimit(window=100, least=50, memory=memory)
    for _ in range(49):
        broken.count(True)
    with pytest.raises(TooManyDeadLetters):
        broken.count(True)
    for _ in range(3):  # starts, while the fault is there
        limit, buried = DeadLetterLimit(window=100, least=50, memory=memory), 0
        with contextlib.suppress(TooManyDeadLetters):
            while buried < 50:
                limit.count(True)
                buried += 1
        assert buried < 5
    mended = DeadLetterLimit(window=100, least=50, memory=memory)
    mended.count(True)  # a single bad record does not stop it
    for _ in range(100):
        mended.count(False)
    for failed in [True, False, False] * 30:
        mended.count(failed)


@settings(deadline=None)
@given(st.binary(min_size=200, max_size=3000))
def test_a_memory_that_is_none_of_the_limits_does_no_harm(content: bytes) -> None:
    limit = DeadLetterLimit(window=100, memory=memoryview(bytearray(content)))
    for _ in range(150):
        limit.count(False)
