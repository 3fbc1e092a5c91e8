"""Clips in the making: who gets them, when they end, and that nothing that went into one is forgotten or written twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from agents.cascade.evidence.clip import ClipEncoder
from agents.cascade.evidence.clips import SILENT_S, STREAMS, Clips, Made, _Pauses
from agents.cascade.evidence.playback import pictures
from agents.inference.images import UndecodableImage
from schemas.config import Evidence

LONG_S = 10.0
LIMIT_S = 30.0
Start = Callable[..., Clips[str]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr("agents.cascade.evidence.clips.SILENT_S", LONG_S)
    pool = ThreadPoolExecutor(1)

    def make(**evidence: Any) -> Clips[str]:
        return Clips(Evidence(**{"clip_s": LONG_S, "clip_frames": 4, **evidence}), pool)

    yield make
    pool.shutdown(wait=True)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, LIMIT_S))


def grey(value: int, side: int = 32) -> Any:
    return np.full((side, side, 3), value, np.uint8)


def add(clips: Clips[str], number: int, key: str = "cam", side: int = 32, **more: Any) -> asyncio.Task[Made[str] | None]:
    load = more.pop("load", lambda: grey(20 * number, side))
    record = more.pop("record", f"{key}/{number}")
    return asyncio.ensure_future(clips.add(key, record, more.pop("sequence", number), f"item {number}", load, 28, **more))


def shades(made: Made[str]) -> list[int]:
    """What the frames of a clip show."""
    return [round(float(pixels.mean()) / 20) for pixels in pictures(made.data, len(made.items))]


def test_the_first_gets_the_clip_when_it_is_full_and_the_others_go_at_once(start: Start) -> None:
    async def drive() -> None:
        clips, sizes = start(), list[int]()
        first = add(clips, 0, encoded=sizes.append)
        assert await add(clips, 1, encoded=sizes.append) is None
        assert await add(clips, 2, encoded=sizes.append) is None
        assert not first.done()
        assert len(clips) == 1
        assert await add(clips, 3, encoded=sizes.append) is None
        made = await first
        assert made is not None
        assert made.items == ("item 0", "item 1", "item 2", "item 3")
        assert shades(made) == [0, 1, 2, 3]
        assert list(made.sizes) == sizes
        assert sum(sizes) == len(made.data)
        assert len(clips) == 0
        assert clips._unwritten == {}

    run(drive())


def test_it_ends_by_time_when_its_source_falls_silent(start: Start) -> None:
    async def drive() -> None:
        clips = start(clip_s=0.05)
        first = add(clips, 0)
        assert await add(clips, 1) is None
        made = await first
        assert made is not None
        assert made.items == ("item 0", "item 1")
        assert len(clips) == 0
        again = await add(clips, 2)
        assert again is not None
        assert again.items == ("item 2",)

    run(drive())


def test_it_ends_when_its_source_has_been_silent_for_longer_than_it_usually_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.cascade.evidence.clips.SILENT_S", 0.05)

    async def drive() -> None:
        clips = start(clip_frames=60)
        alone = await asyncio.wait_for(add(clips, 0), LONG_S / 2)
        assert alone is not None
        assert alone.items == ("item 0",)

    run(drive())


def test_who_is_slow_is_not_taken_for_silent() -> None:
    pauses, now = _Pauses(), 0.0
    assert pauses.silence_s("cam", now) == SILENT_S
    for _ in range(30):
        now += 2.0
        found = pauses.silence_s("cam", now)
    assert found == pytest.approx(8.0)
    for _ in range(60):
        now += 0.01
        found = pauses.silence_s("cam", now)
    assert found == SILENT_S
    assert pauses.silence_s("other", now) == SILENT_S
    for number in range(STREAMS + 5):
        pauses.silence_s(number, now)
    assert len(pauses._known) == STREAMS


def test_streams_have_clips_of_their_own_and_one_too_many_ends_the_oldest(start: Start) -> None:
    async def drive() -> None:
        clips = start(open_clips=2)
        firsts = [add(clips, 0, key) for key in "ab"]
        await add(clips, 1, "a")
        third = add(clips, 0, "c")
        made = await firsts[0]
        assert made is not None
        assert made.items == ("item 0", "item 1")
        assert not firsts[1].done()
        assert not third.done()
        assert len(clips) == 2
        for task in (firsts[1], third):
            task.cancel()

    run(drive())


def test_frames_come_in_the_order_in_which_they_were_asked_about(start: Start) -> None:
    async def drive() -> None:
        clips = start(clip_frames=8)
        tasks = [add(clips, number) for number in range(8)]
        found = await asyncio.gather(*tasks)
        assert found[1:] == [None] * 7
        assert found[0] is not None
        assert shades(found[0]) == list(range(8))

    run(drive())


def test_a_frame_that_cannot_be_decoded_is_left_out(start: Start) -> None:
    def broken() -> Any:
        raise UndecodableImage("a damaged JPEG")

    async def drive() -> None:
        for bad in range(3):
            clips = start(clip_frames=3)
            tasks = [add(clips, n, **({"load": broken} if n == bad else {})) for n in range(3)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[bad], UndecodableImage)
            made = [each for each in found if isinstance(each, Made)]
            assert [each.items for each in made] == [tuple(f"item {n}" for n in range(3) if n != bad)]
            assert found.index(made[0]) == (1 if bad == 0 else 0), "the first that is in it writes it"

    run(drive())


def test_nothing_but_undecodable_frames_leaves_nothing(start: Start) -> None:
    def broken() -> Any:
        raise UndecodableImage("a damaged JPEG")

    async def drive() -> None:
        clips = start(clip_frames=2)
        found = await asyncio.gather(*(add(clips, n, load=broken) for n in range(2)), return_exceptions=True)
        assert [type(each) for each in found] == [UndecodableImage] * 2
        await asyncio.get_running_loop().run_in_executor(clips._pool, int)  # behind the end of the clip
        await asyncio.sleep(0)
        assert clips._unwritten == {}

    run(drive())


@pytest.mark.parametrize("sequence", [2, 1])
def test_a_frame_that_is_not_newer_begins_a_clip_of_its_own(start: Start, sequence: int) -> None:
    """What is told to be in a clip may be committed only behind the first of that clip."""

    async def drive() -> None:
        clips = start(clip_frames=3)
        first = add(clips, 2)
        await asyncio.sleep(0)
        old = add(clips, 7, record="cam/old", sequence=sequence)
        assert (await first).items == ("item 2",)
        assert await add(clips, 3) is None
        assert await add(clips, 4) is None
        assert (await old).items == ("item 7", "item 3", "item 4")

    run(drive())


def test_frames_of_another_size_go_into_another_clip(start: Start) -> None:
    async def drive() -> None:
        clips = start(clip_frames=3, clip_s=0.2)
        tasks = [add(clips, number, side=32 if number < 2 else 48) for number in range(5)]
        made = [each for each in await asyncio.gather(*tasks) if each is not None]
        assert sorted(item for each in made for item in each.items) == [f"item {n}" for n in range(5)]
        for each in made:
            assert list(each.items) == sorted(each.items)
            assert shades(each) == [int(item[-1]) for item in each.items]

    run(drive())


def test_a_clip_grows_to_a_bound_of_bytes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many frames have a place in it already: a topic has a bound too."""
    monkeypatch.setattr("agents.cascade.evidence.clips.FULL_BYTES", 2000)
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)

    async def drive() -> None:
        clips = start(clip_frames=60, clip_s=0.3)
        tasks = [add(clips, n, load=lambda n=n: noise[n]) for n in range(4)]
        made = [each for each in await asyncio.wait_for(asyncio.gather(*tasks), LONG_S / 2) if each is not None]
        assert sorted(item for each in made for item in each.items) == [f"item {n}" for n in range(4)]
        for each in made:
            assert len(each.data) - each.sizes[-1] < 2000
        assert len(made[0].data) >= 2000

    run(drive())


# ---- work that is broken off


@pytest.mark.parametrize("when", ["open", "ended"])
def test_who_comes_back_after_its_work_was_broken_off_takes_its_clip_up_again(start: Start, when: str) -> None:
    async def drive() -> None:
        clips, paid = start(), list[int]()
        first = add(clips, 0)
        await add(clips, 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert clips.holds("cam/0")
        assert not clips.holds("cam/9")
        if when == "ended":
            clips._end(next(iter(clips._open.values())))
        again = add(clips, 0, encoded=paid.append)
        if when == "open":
            assert await add(clips, 2) is None
            assert await add(clips, 3) is None
        made = await again
        assert made is not None
        assert made.items == ("item 0", "item 1", "item 2", "item 3")[: 4 if when == "open" else 2]
        assert paid == [0], "it was paid for before"
        assert clips._unwritten == {}

    run(drive())


def test_where_the_first_does_not_come_back_the_next_one_writes_the_clip(start: Start) -> None:
    async def drive() -> None:
        clips = start()
        first = add(clips, 0)
        await add(clips, 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = add(clips, 2)
        assert await add(clips, 3) is None
        assert (await second).items == ("item 0", "item 1", "item 2", "item 3")

    run(drive())


def test_a_frame_whose_work_comes_again_is_in_its_clip_once(start: Start) -> None:
    async def drive() -> None:
        clips = start()
        first = add(clips, 0)
        assert await add(clips, 1) is None
        assert await add(clips, 1) is None
        assert await add(clips, 2) is None
        assert await add(clips, 3) is None
        assert (await first).items == ("item 0", "item 1", "item 2", "item 3")

    run(drive())


def test_a_frame_whose_work_is_broken_off_while_it_is_encoded_is_in_its_clip_once_and_paid_for(start: Start) -> None:
    async def drive() -> None:
        clips, sizes, gate, begun = start(), list[int](), threading.Event(), threading.Event()

        def slow() -> Any:
            begun.set()
            assert gate.wait(LIMIT_S)
            return grey(20)

        first = add(clips, 0, encoded=sizes.append)
        second = add(clips, 1, load=slow, encoded=sizes.append)
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, LIMIT_S)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        again = add(clips, 1, sequence=2, encoded=sizes.append)
        last = add(clips, 2, sequence=3, encoded=sizes.append)
        gate.set()
        assert await asyncio.gather(again, last) == [None, None]
        made = await first
        assert made is not None
        assert made.items == ("item 0", "item 1", "item 2")
        assert sum(sizes) == len(made.data)

    run(drive())


def test_an_encoder_that_fails_is_replaced_and_whoever_waits_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise MemoryError("no memory")

    async def drive() -> None:
        clips = start(clip_frames=3)
        first = add(clips, 0)
        await asyncio.sleep(0)
        with pytest.raises(MemoryError):
            await add(clips, 1, load=broken)
        assert (await first).items == ("item 0",)  # the clip ends there, whole
        next_ones = [add(clips, n) for n in (2, 3, 4)]
        assert (await next_ones[0]).items == ("item 2", "item 3", "item 4")
        monkeypatch.setattr(ClipEncoder, "finish", lambda self: broken())
        found = await asyncio.gather(*(add(clips, n) for n in (5, 6, 7)), return_exceptions=True)
        assert [type(each) for each in found] == [MemoryError, type(None), type(None)]
        assert clips._unwritten == {}

    run(drive())
