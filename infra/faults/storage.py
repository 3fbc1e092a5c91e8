"""Faults of what brokers keep: a topic made anew, a log cut by a power cut, retention shorter than an outage, a disk that is full."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from infra.faults.fleet import Fleet
from infra.faults.rounds import Act, Broken, Fault, Setting
from infra.faults.service import FaultDidNotHappen

CUT_BYTES = 3_000
OUTLIVED = 200  # verdicts that are gone


def _quiet(fleet: Fleet) -> None:
    """Stop the producer and wait for everything: what is taken away next is nothing that was still to be read."""
    fleet["producer"].stop()
    if not (settled := fleet.settle(limit_s=60)).clean:
        raise Broken(f"not quiet before the fault: {settled}")


def recreated(*topics: str) -> Act:
    """Topics of the leaf deleted and made anew: offsets begin again at 0, under another uuid."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        _quiet(fleet)
        said = []
        for topic in topics:
            before, end = fleet.leaf.uuid(topic), fleet.leaf.end(topic, fleet.partitions)
            after = fleet.leaf.recreate(topic)
            if after == before:
                raise FaultDidNotHappen(f"{topic} kept its uuid")
            fleet.judge.look_again("leaf", topic)
            said.append(f"{topic} ({end} records) is {after} instead of {before}")
        fleet["producer"].start()
        time.sleep(setting.length_s)
        yield "; ".join(said)

    return act


def truncated(*topics: str) -> Act:
    """A power cut: the leaf's broker ends at once, and the last bytes of its logs are gone."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        _quiet(fleet)
        ends = {topic: [high for _, high in fleet.leaf.watermarks(topic, fleet.partitions)] for topic in topics}
        death = fleet["leaf broker"].kill(stay_down=True)
        for topic in topics:
            for partition in range(fleet.partitions):
                _cut(fleet.leaf_broker.settings.folder / "data" / f"{topic}-{partition}")
        fleet.start_leaf_broker()
        lost = {topic: sum(ends[topic]) - fleet.leaf.end(topic, fleet.partitions) for topic in topics}
        if not all(lost.values()):
            raise FaultDidNotHappen(f"nothing is missing from {lost}")
        for topic in topics:
            fleet.judge.look_again("leaf", topic)
        fleet["producer"].start()
        time.sleep(setting.length_s)
        yield f"broker (pid {death.pid}) killed and logs cut: {', '.join(f'{count} records of {topic}' for topic, count in lost.items())}"

    return act


def _cut(folder: Path) -> None:
    """Take the last bytes of a partition's newest segment."""
    segment = max(folder.glob("*.log"))
    size = segment.stat().st_size
    with segment.open("r+b") as file:
        file.truncate(max(0, size - CUT_BYTES))


def outlived(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """An outage longer than retention: what the leaf no longer has is said to be lost, exactly.

    The link's process is ended in order first: it would hold what it has read, and what it had sent without an answer would come after all.
    The beginning of the log is moved by hand, up to what the leaf's own resolver and the judge have read: a retention that is short enough
    to outlive in a minute would, on a busy machine, take from them too, and that is another fault.
    """
    fleet.settle(limit_s=60)
    fleet["link"].stop()
    fleet.proxy.cut()
    starts = [high for _, high in fleet.leaf.watermarks("verdicts", fleet.partitions)]

    def read() -> list[int]:
        resolved = fleet.leaf.committed(f"{fleet.leaf_name}.resolver", "verdicts", fleet.partitions)
        with fleet.judge.lock:
            judged = [fleet.judge.readers["leaf"].next_offset(("verdicts", partition)) for partition in range(fleet.partitions)]
        return [min(each) for each in zip(resolved, judged, strict=True)]

    fleet.wait(
        "verdicts that the link has not carried",
        lambda: sum(max(0, offset - start) for offset, start in zip(read(), starts, strict=True)) > OUTLIVED,
        120,
    )
    fleet.leaf.delete_before("verdicts", {partition: offset for partition, offset in enumerate(read()) if offset > 0})
    lows = [low for low, _ in fleet.leaf.watermarks("verdicts", fleet.partitions)]
    lost = sum(max(0, low - start) for low, start in zip(lows, starts, strict=True))
    fleet.proxy.restore()
    fleet["link"].start()
    yield f"{lost} verdicts were gone from the leaf when the link came back"
    with fleet.judge.lock:
        uuid = fleet.judge.book.uuids["verdicts"]  # a topic that was made anew before has losses of its own
        missing = {(each.partition, each.offset) for each in fleet.judge.book.lost("verdicts") if each.topic_uuid == uuid}
        said = {
            (partition, offset) for of, partition, first, last in fleet.judge.book.losses if of == uuid for offset in range(first, last + 1)
        }
    if not missing or said != missing:
        raise Broken(f"{len(missing)} verdicts never came to the region, {len(said)} were said to be lost, {len(said ^ missing)} differ")


def overtaken(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """A resolver that is slower than retention: the records whose verdicts it will never see are said to be lost."""
    fleet["leaf resolver"].stop()
    group = f"{fleet.leaf_name}.resolver"

    def waiting() -> int:
        resolved = fleet.leaf.committed(group, "verdicts", fleet.partitions)
        return sum(high - offset for offset, (_, high) in zip(resolved, fleet.leaf.watermarks("verdicts", fleet.partitions), strict=True))

    fleet.wait("verdicts that are not resolved", lambda: waiting() > OUTLIVED, 120)
    fleet["producer"].stop()

    def carried() -> bool:
        with fleet.judge.lock:
            return not fleet.judge.book.uncarried("verdicts", float("inf"))

    fleet.wait("the region to have them", carried, 60)
    with fleet.judge.lock:
        judged = {partition: fleet.judge.readers["leaf"].next_offset(("verdicts", partition)) for partition in range(fleet.partitions)}
        said = fleet.judge.book.reasons["resolver: retention"]
    resolved = fleet.leaf.committed(group, "verdicts", fleet.partitions)
    fleet.leaf.delete_before("verdicts", {partition: offset for partition, offset in judged.items() if offset > 0})
    lost = sum(max(0, judged[partition] - max(0, offset)) for partition, offset in enumerate(resolved))
    if not lost:
        raise FaultDidNotHappen("every verdict was resolved")
    fleet["leaf resolver"].start()
    fleet["producer"].start()
    fleet.wait("drops that explain them", lambda: fleet.judge.book.reasons["resolver: retention"] > said, 60)
    time.sleep(setting.length_s)
    yield f"{lost} verdicts were gone before the leaf's resolver had read them"


STORAGE = (
    Fault("topic recreated: frames", recreated("frames"), length_s=6.0),
    Fault("topic recreated: escalations", recreated("escalations"), length_s=6.0),
    Fault("topic recreated: verdicts", recreated("verdicts"), length_s=6.0),
    Fault("power cut: logs truncated", truncated("frames", "verdicts"), length_s=6.0),
    Fault("outage longer than retention", outlived),
    Fault("resolver slower than retention", overtaken, length_s=4.0),
)
