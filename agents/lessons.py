"""What a leaf has learned of its sources outlives its process: one record a source in a compacted topic, read back by whoever serves the
source next. Tracks are not kept, nor questions whose answers are waited for: by then they are over.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import zlib
from collections.abc import Iterable

import msgspec
from mode import Service

from agents.audits import Audits
from agents.cascade.cascade import Cascade, Lesson
from agents.drift.monitor import MonitorState
from agents.ledgers import Kept
from agents.monitors import Monitors
from streams import outputs
from streams.clients import BrokerUnavailable, Clients
from streams.message import readable
from streams.restore import batches_to_end
from streams.sink import NotDelivered, Sink, SinkBroken
from streams.topology import Topic

log = logging.getLogger("headwater.lessons")

EVERY_S = 60.0
WHOLE_EVERY = 10
HAND_OVER_S = 3.0
LAYOUT = 1  # of what is packed; another one is passed over
MAX_BYTES = 16 << 20  # unpacked
_LEVEL = 1  # of zlib
_HEADERS_BYTES = 4 << 10


class _Packed(msgspec.Struct, frozen=True):
    layout: int
    lesson: Lesson
    audits: list[Kept]
    drift: MonitorState | None


_decoder = msgspec.msgpack.Decoder(_Packed)
_layout = msgspec.msgpack.Decoder(msgspec.defstruct("_Layout", [("layout", int)]))


def pack(lesson: Lesson, audits: list[Kept], drift: MonitorState | None = None) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(_Packed(LAYOUT, lesson, audits, drift)), _LEVEL)


def unpack(data: bytes) -> tuple[Lesson, list[Kept], MonitorState | None]:
    """What `pack` gave; raises `ValueError` if it is anything else."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, MAX_BYTES)
        if not unpacker.eof:
            raise ValueError(f"it is cut, or larger than {MAX_BYTES} bytes")
        if (layout := _layout.decode(plain).layout) != LAYOUT:  # type: ignore[attr-defined]
            raise ValueError(f"its layout is {layout}: expected {LAYOUT}")
        packed = _decoder.decode(plain)
        return packed.lesson, packed.audits, packed.drift
    except (zlib.error, msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


class Lessons(Service):
    """Writes what was learned, now and then and at the end, and reads it back for partitions that come.

    Parameters
    ----------
    topic
        Where it is kept, partitioned as the sources' frames are.
    every_s
        What a process that is killed has learned within this time is lost.
    """

    def __init__(
        self,
        clients: Clients,
        topic: Topic,
        sink: Sink,
        cascade: Cascade,
        audits: Audits,
        monitors: Monitors,
        *,
        site: str,
        every_s: float = EVERY_S,
    ) -> None:
        self.clients, self.topic, self.sink, self.site, self.every_s = clients, topic, sink, site, every_s
        self.cascade, self.audits, self.monitors = cascade, audits, monitors
        super().__init__()

    async def on_start(self) -> None:
        self.events = asyncio.get_running_loop()

    @Service.task
    async def _keep(self) -> None:
        count = 0
        while not self.should_stop:
            await self.sleep(self.every_s)
            count += 1
            await self.write(whole=count % WHOLE_EVERY == 0)

    async def on_stop(self) -> None:
        await self.write(whole=True)

    async def write(self, *, whole: bool) -> None:
        """Write what was learned since the last time; what fails is written the next time. `whole`: of sources too that nothing was learned
        of since then, since what their streams are usually like has moved on."""
        lessons = self.cascade.lessons()
        if whole:
            lessons |= {name: each for name in self.monitors.sources if (each := self.cascade.lesson(name)) is not None}
        if not lessons:
            return
        try:
            beside = {source: (self.audits.dump(source), self.monitors.dump(source)) for source in lessons}
            packed = await asyncio.to_thread(lambda: {source: pack(lesson, *beside[source]) for source, lesson in lessons.items()})
            now, room = dt.datetime.now(dt.UTC), self.topic.max_message_bytes - _HEADERS_BYTES
            for source in [source for source, data in packed.items() if len(data) > room]:
                log.warning(
                    "what was learned of a source is too much to be kept", extra={"record": source, "bytes": len(packed.pop(source))}
                )
            await self.sink.write([outputs.lesson(self.topic, source, data, self.site, now) for source, data in packed.items()])
        except (NotDelivered, SinkBroken) as error:
            self.cascade.unsaved(lessons)
            log.warning("what was learned could not be written yet: %s", error, extra={"sources": len(lessons)})
        else:
            log.info("what was learned is written", extra={"sources": len(lessons), "bytes": sum(map(len, packed.values()))})

    def hand_over(self) -> None:
        """Write what was learned before partitions go to another worker. Called in the consumer's thread, within a rebalance: it waits for
        a moment, and no longer."""
        writing = asyncio.run_coroutine_threadsafe(self.write(whole=True), self.events)
        try:
            writing.result(HAND_OVER_S)
        except TimeoutError:
            log.warning("what was learned could not be written before the partitions went")

    def restore(self, partitions: Iterable[int]) -> None:
        """Take up what is known of the sources of partitions that came, before their frames. Called in the consumer's thread; without it a
        leaf begins to learn anew, so a broker that does not answer holds nothing up."""
        found: dict[str, bytes] = {}
        try:
            for batch in batches_to_end(self.clients, [(self.topic.name, partition) for partition in sorted(set(partitions))]):
                for record in map(readable, batch):
                    key, value = record.key(), record.value()
                    if key is not None and value is not None:
                        found[key.decode(errors="replace")] = value
        except BrokerUnavailable as error:
            log.warning("what was learned could not be read back: %s", error)
        lessons: dict[str, tuple[Lesson, list[Kept], MonitorState | None]] = {}
        for source, data in found.items():
            try:
                lessons[source] = unpack(data)
            except ValueError as error:
                log.warning("what was learned of a source is not used: %s", error, extra={"record": source})
        self.events.call_soon_threadsafe(self._recall, lessons)

    def _recall(self, lessons: dict[str, tuple[Lesson, list[Kept], MonitorState | None]]) -> None:
        """On the event loop, which has its turn before the frames that are handed over later."""
        taken = 0
        for source, (lesson, audits, drift) in lessons.items():
            self.audits.load(source, audits)
            if drift is not None:
                self.monitors.load(source, drift)
            try:
                taken += self.cascade.recall(source, lesson)
            except ValueError as error:
                log.info("what was learned of a source does not fit any more: %s", error, extra={"record": source})
        if taken:
            log.info("what was learned is taken up", extra={"sources": taken})
