"""The laws that the join, the link and store-and-forward rest on, stated over declared topics, and what a broken one is reported as.

Pure. They are held against the declaration as well as against what is found on a cluster.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

from streams.topology import Role, Topic, dead_letters


class Severity(enum.StrEnum):
    """`error`: it does not work, or loses data. `warning`: look at it. `info`: good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found: what is wrong with which topic or group, and what to do about it. `setting` is the topic's setting
    that `declared` and `found` are values of, if it is one."""

    severity: Severity
    code: str
    subject: str
    problem: str
    fix: str = ""
    setting: str | None = None
    declared: str | None = None
    found: str | None = None


def laws(topics: Iterable[Topic]) -> Iterator[Finding]:
    """What must hold between the topics of one cluster, whatever their names."""
    by_name = {topic.name: topic for topic in topics}
    results = next((topic for topic in by_name.values() if topic.base == "results"), None)
    inputs = [topic for topic in by_name.values() if Role.RESOLVER in topic.readers and not own(topic, Role.RESOLVER)]
    for topic in by_name.values():
        if "delete" in topic.cleanup and topic.retention_bytes <= 0:
            yield _law("no-byte-bound", topic, "is deleted by time only, so that a burst can fill the disk", "give it retention.bytes")
        letters = by_name.get(dead_letters(topic))
        if letters is not None and letters.max_message_bytes <= topic.max_message_bytes:
            yield _law(
                "dead-letters-too-small",
                letters,
                f"takes messages of {letters.max_message_bytes} bytes, no more than {topic.name} ({topic.max_message_bytes}): "
                "a dead letter is its record and the error's headers",
                f"set max.message.bytes to more than {topic.max_message_bytes}",
            )
    if results is None:
        return
    for topic in inputs:
        if topic.partitions != results.partitions:
            yield _law(
                "resolver-partitions",
                topic,
                f"has {topic.partitions} partitions and {results.name} {results.partitions}: its verdicts and results would not meet",
                "make them equal: recreate the topic, since partition counts must not change in place",
            )
        again_s, why = _comes_again_s(topic, by_name.get(dead_letters(topic)))
        if not _outlives(results.retention_s, again_s):
            yield _law(
                "resolver-memory",
                topic,
                f"can bring a record again for {time_text(again_s)} ({why}) and {results.name} is kept only "
                f"{time_text(results.retention_s)}: a replay could reach the resolver after it has forgotten the record",
                f"keep {results.name} longer (it is made from topics.outbox_retention_s)",
            )
    replayed = sum(topic.retention_bytes for topic in inputs if topic.value == "Verdict")
    if 0 < results.retention_bytes < replayed:
        yield _law(
            "resolver-memory",
            results,
            f"keeps {size_text(results.retention_bytes)} a partition, its inputs {size_text(replayed)} together: "
            "it could forget by bytes what can still be replayed",
            f"set retention.bytes to at least {replayed}",
            Severity.WARNING,
        )


def own(topic: Topic, role: Role) -> bool:
    """Whether a topic is one that a role alone writes and reads back to restore itself: what it holds is no input."""
    return topic.writers == {role} and role in topic.readers and topic.base != "incidents.alerts"


def _comes_again_s(topic: Topic, letters: Topic | None) -> tuple[int, str]:
    """For how long after its first reading a record may be read again, and by what ways: it is read again from its topic, it is brought
    again by a link (a backfill, a link that starts again) from the other side's outbox, which is kept as long, or its dead letter is
    replayed."""
    ways = [("its topic", topic.retention_s)]
    if Role.LINK in topic.writers:
        ways.append(("the link's backfill", topic.retention_s))
    if letters is not None:
        ways.append(("its dead letters", letters.retention_s))
    told = " + ".join(f"{time_text(seconds)} of {way}" for way, seconds in ways)
    return (-1 if any(seconds < 0 for _, seconds in ways) else sum(seconds for _, seconds in ways)), told


def _law(code: str, topic: Topic, problem: str, fix: str, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(severity=severity, code=code, subject=topic.name, problem=problem, fix=fix)


def _outlives(longer_s: int, shorter_s: int) -> bool:
    return longer_s < 0 or 0 <= shorter_s < longer_s


def time_text(seconds: float) -> str:
    """A duration for people; below 0 or without end: for ever."""
    if seconds < 0 or seconds == float("inf"):
        return "for ever"
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
