"""Faults of the records themselves: damaged, foreign, too large, fatal to who looks at them, repeated, out of order, read again."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial

from infra.faults import pictures
from infra.faults.book import DEAD, ENDED, RESULT
from infra.faults.fleet import Fleet, partition_of
from infra.faults.raw import Admin, Writer, everything
from infra.faults.rounds import Broken, Fault, Setting
from infra.faults.service import FaultDidNotHappen

CORRUPT = 2_000
REPEATED = 1_500
REPLAYED = 20_000  # records of each partition that are read again
HANGING_LIMIT = {"work_limit_s": 10.0, "hang_ms": 600_000}  # sites for poison: no look is given up before its process is


def corrupt(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Thousands of damaged JPEGs, and records of which nothing is right: no headers, no key, no value, headers that are none of ours."""
    seed = setting.chance.randrange(1 << 30)
    damaged = [pictures.corrupted(seed + number) for number in range(CORRUPT)]
    ids = fleet.inject("damaged", damaged)
    foreign = _foreign(fleet, seed)
    unreadable = [digest for picture in damaged if fleet.judge.oracle(digest := fleet.judge.oracle.learn(picture)) is None]
    if len(unreadable) < CORRUPT // 3:
        raise FaultDidNotHappen(f"only {len(unreadable)} of {CORRUPT} damaged pictures cannot be decoded")
    yield f"{CORRUPT} damaged JPEGs ({len(unreadable)} cannot be decoded) and {len(foreign)} foreign records"
    _ended_as_they_must(fleet, [*ids, *foreign])


def _foreign(fleet: Fleet, seed: int) -> list[str]:
    """Records without our envelope, or with a broken one; those without an id are named by the place where Kafka puts them."""
    good, partition = pictures.spots(seed), partition_of("damaged")
    values: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
        (b"gate 3", good, []),
        (None, good, []),
        (b"gate 3", b"", []),
        (b"gate 3", None, []),
        (b"gate 3", b"not a picture", []),
        (b"\xff\xfe", good, [("ce_id", b"x/y/0")]),
        (b"gate 3", good, [("ce_specversion", b"9.9"), ("ce_id", b"\xff"), ("ce_source", b"gate"), ("ce_type", b"?")]),
        (b"gate 3", good, [("junk", bytes(20_000))] * 2),
    ]
    return fleet.inject_foreign([(key, value, headers, partition) for key, value, headers in values * 5])


def _ended_as_they_must(fleet: Fleet, ids: Sequence[str]) -> None:
    """What can be decoded is answered, and nothing else is."""
    with fleet.judge.lock:
        for record in ids:
            promise = fleet.judge.book.promises[record]
            readable = fleet.judge.oracle(promise.sha256) is not None
            if promise.flags & RESULT and not readable:
                raise Broken(f"{record} cannot be decoded and has a result")


def oversized(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Frames larger than the site takes: each is a dead letter with the bytes that it had. The broker refuses what is larger still."""
    seed = setting.chance.randrange(1 << 30)
    frames = [pictures.large(seed + number, (1 << 20) + 1) for number in range(8)]
    ids = fleet.inject("heavy", frames)
    writer = Writer(fleet.leaf_servers)
    writer.write("frames", partition_of("heavy"), b"heavy", bytes(17 << 20))
    writer.flush()
    if not writer.refused:
        raise FaultDidNotHappen("the broker took a message of 17 MiB")
    yield f"{len(ids)} frames of more than 1 MiB; one of 17 MiB was refused by the broker ({writer.refused[0][1]})"
    with fleet.judge.lock:
        if alive := [record for record in ids if not fleet.judge.book.promises[record].flags & DEAD]:
            raise Broken(f"{len(alive)} frames that are too large are no dead letters: {alive[:3]}")
    kept = {message.value() for message in everything(fleet.leaf_servers, ["frames.dlq"]) if _id(message) in set(ids)}
    if kept != set(frames):
        raise Broken("dead letters do not hold the bytes of the frames that they are")


def poisoned(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """A picture that kills the process which looks at it, between good ones: it is put away, and the good ones are answered."""
    seed = setting.chance.randrange(1 << 20)
    batch = [*map(pictures.spots, range(seed, seed + 6)), pictures.crashing(seed), *map(pictures.spots, range(seed + 6, seed + 12))]
    deaths = len(fleet["leaf agent"].deaths)
    ids = fleet.inject("poison", batch)
    fleet.judge.oracle.forbid(batch[6])
    fleet.wait("the leaf's agent to die of it", lambda: len(fleet["leaf agent"].deaths) > deaths)
    codes = {death.code for death in fleet["leaf agent"].deaths[deaths:]}
    if codes != {-signal.SIGFPE}:
        raise FaultDidNotHappen(f"the leaf's agent ended with {codes}, not by SIGFPE")
    fleet.wait("the poison to be put away", lambda: fleet.judge.flags(ids[6]) & DEAD, 240)
    times = len(fleet["leaf agent"].deaths) - deaths
    yield f"the leaf's agent died {times} times by SIGFPE before the record was put away"
    if wrong := [record for index, record in enumerate(ids) if index != 6 and not fleet.judge.flags(record) & RESULT]:
        raise Broken(f"good records beside the poison were not answered: {wrong}")


def hanging(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """A picture that a look never comes back from, between good ones."""
    seed = setting.chance.randrange(1 << 20)
    batch = [*map(pictures.spots, range(seed, seed + 4)), pictures.endless(seed), *map(pictures.spots, range(seed + 4, seed + 8))]
    ids = fleet.inject("endless", batch)
    fleet.judge.oracle.forbid(batch[4])
    fleet.wait("the endless record to be put away", lambda: fleet.judge.flags(ids[4]) & ENDED, 240)
    yield "a record that a look never comes back from was put away"
    if wrong := [record for index, record in enumerate(ids) if index != 4 and not fleet.judge.flags(record) & RESULT]:
        raise Broken(f"good records beside it were not answered: {wrong}")


def repeated(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Verdicts and alerts of both tiers written again, twice each and in any order, by a client that is none of ours."""
    fleet.settle(limit_s=60)
    places = [
        (fleet.leaf_servers, ("verdicts", "region.verdicts", "alerts")),
        (
            fleet.region_servers,
            tuple(f"{way}.{fleet.leaf_name}.{what}" for way, what in (("up", "verdicts"), ("up", "alerts"), ("down", "verdicts"))),
        ),
    ]
    count = 0
    for servers, topics in places:
        found = list(everything(servers, topics, last=REPEATED))
        again = setting.chance.sample(found, min(REPEATED, len(found))) * 2
        setting.chance.shuffle(again)
        writer = Writer(servers)
        for message in again:
            writer.write_again(message)
        writer.flush()
        count += len(again)
    before = fleet.judge.outputs("leaf results"), fleet.judge.outputs("region results")
    yield f"{count} verdicts and alerts written again, shuffled, on both sites (results so far: {before[0]}, {before[1]})"


def replayed(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """The offsets of the leaf's agent and of both resolvers go back to the beginning after results were final."""
    fleet.settle(limit_s=60)
    groups = (
        ("leaf resolver", fleet.leaf, f"{fleet.leaf_name}.resolver", ("verdicts", "region.verdicts")),
        (
            "region resolver",
            fleet.region,
            f"{fleet.region_name}.resolver",
            tuple(f"{way}.{fleet.leaf_name}.verdicts" for way in ("up", "down")),
        ),
        ("leaf agent", fleet.leaf, f"{fleet.leaf_name}.leaf", ("frames",)),
    )
    for name, *_ in groups:
        fleet[name].stop()
    moved = []
    for name, admin, group, topics in groups:
        fleet.wait(f"{group} to have no members", partial(_empty, admin, group))
        starts = {
            (topic, p): max(low, high - REPLAYED)
            for topic in topics
            for p, (low, high) in enumerate(admin.watermarks(topic, fleet.partitions))
        }
        before = admin.totals(group, topics, fleet.partitions)
        admin.move_group(group, starts)
        moved.append((name, admin, group, topics, before))
    for name, *_ in groups:
        fleet[name].start()
    for name, admin, group, topics, before in moved:
        fleet.wait(f"{name} to have read everything again", partial(_reached, admin, group, topics, fleet.partitions, before), 180)
    yield "read again: up to " + ", ".join(f"{before} records by the {name}" for name, *_, before in moved)


def _empty(admin: Admin, group: str) -> bool:
    return admin.members(group) == 0


def _reached(admin: Admin, group: str, topics: Sequence[str], partitions: int, wanted: int) -> bool:
    return admin.totals(group, topics, partitions) >= wanted


def _id(message: object) -> str:
    headers = dict(message.headers() or [])  # type: ignore[attr-defined]
    return (headers.get("ce_id") or b"").decode(errors="replace")


RECORDS = (
    Fault("corrupt and foreign records", corrupt),
    Fault("oversized messages", oversized),
    Fault("duplicated and shuffled verdicts", repeated),
    Fault("replay after results were final", replayed),
)
POISON = (Fault("poison record (native crash)", poisoned), Fault("poison record (endless loop)", hanging))
