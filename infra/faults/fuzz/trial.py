"""Fuzzing by a fixed number of seeded changes: `python -m infra.faults.fuzz.trial`. The same seed tries the same inputs, everywhere.

It runs in a process of its own, because a decoder may crash natively: the input in work stands in a file before it is tried.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from types import FrameType

import msgspec

from infra.faults.fuzz.harness import LIMIT_S, Broken, Harness
from infra.faults.fuzz.mutate import mutate

HANG_S = 5.0  # of processor time, so that a busy machine finds nothing; what waits without end is our parent's to end
MAX_FINDINGS = 5  # of one harness; then it is known to be broken
_KEPT = 64  # changed inputs that are changed again


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One input that breaks a law. `place` is where, to tell findings apart; `file` is where the input was saved."""

    harness: str
    error: str
    place: str
    file: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one harness. `peak_rss_bytes` is the most memory that the process has had so far."""

    harness: str
    executions: int
    seconds: float
    findings: tuple[Finding, ...]
    peak_rss_bytes: int


def finding_of(name: str, error: BaseException) -> Finding:
    """An error as a finding: told apart by its type and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/faults/fuzz/" not in frame.filename]
    last = next(reversed(ours or list(frames)), None)
    place = f"{Path(last.filename).name}:{last.lineno}" if last is not None else "?"
    try:
        said = str(error)[:500]
    except Exception as worse:  # noqa: BLE001 - an error that cannot be shown is a finding too
        said = f"(cannot be shown: {type(worse).__name__})"
    return Finding(harness=name, error=f"{type(error).__name__}: {said}", place=place)


def save(folder: Path, finding: Finding, data: bytes) -> Finding:
    """Keep the input of a finding as a file; returns the finding with its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.harness}-{zlib.crc32(finding.error.encode() + finding.place.encode()):08x}.bin"
    path.write_bytes(data)
    return msgspec.structs.replace(finding, file=str(path))


@contextlib.contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """Raises `Broken` in what does not end, unless it is native code that looks at no signals: that one our parent ends."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Broken(f"it did not end within {limit_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(harness: Harness, data: bytes, *, limit_s: float = LIMIT_S, alarm_s: float = HANG_S) -> Finding | None:
    """Try one input; what it broke, if anything. `alarm_s` 0: somebody else looks after what does not end."""
    try:
        with _alarm(alarm_s) if alarm_s else contextlib.nullcontext():
            harness.run(data, limit_s=limit_s)
    except Exception as error:  # noqa: BLE001 - every error that gets here is a finding
        return finding_of(harness.name, error)
    return None


def attempts_of(harness: Harness, budget_ms: float, least: int = 40, most: int = 4000) -> int:
    """How many inputs of a harness fit into a budget of about so many milliseconds; the same everywhere."""
    return max(least, min(most, int(budget_ms / harness.cost)))


def try_harness(harness: Harness, count: int, seed: int, folder: Path, in_work: Path) -> Tried:
    """Try the seeds, then `count` changed inputs."""
    random = Random(f"{seed}/{harness.name}")  # noqa: S311 - to be repeated, not to be secret
    seeds = list(harness.seeds())
    corpus = list(seeds)
    found: dict[str, Finding] = {}
    started, executions = time.perf_counter(), 0

    def inputs() -> Iterable[bytes]:
        yield from seeds
        for _ in range(count):
            changed = mutate(random.choice(corpus), random, seeds)
            if random.random() < 0.1:
                corpus[len(seeds) + random.randrange(_KEPT) :] = [changed]
            yield changed

    with in_work.open("wb", buffering=0) as journal:
        for data in inputs():
            journal.seek(0)
            journal.write(len(data).to_bytes(8, "big") + data)
            executions += 1
            finding = attempt(harness, data)
            if finding is not None and f"{finding.error.partition(':')[0]} {finding.place}" not in found:
                found[f"{finding.error.partition(':')[0]} {finding.place}"] = save(folder, finding, data)
                if len(found) >= MAX_FINDINGS:
                    break
    in_work.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Tried(
        harness=harness.name,
        executions=executions,
        seconds=time.perf_counter() - started,
        findings=tuple(found.values()),
        peak_rss_bytes=peak,
    )


def main(argv: list[str]) -> int:
    """`trial FOLDER SEED BUDGET_MS [NAME...]`: one JSON line a harness. `trial --replay NAME FILE...`: tries inputs again."""
    import logging

    from infra.faults.fuzz.all import harnesses

    logging.disable(logging.CRITICAL)
    known = {each.name: each for each in harnesses()}
    if argv[0] == "--replay":
        findings = [finding for file in argv[2:] if (finding := attempt(known[argv[1]], Path(file).read_bytes())) is not None]
        sys.stdout.write(msgspec.json.encode(findings).decode() + "\n")
        return 1 if findings else 0
    folder, seed, budget_ms = Path(argv[0]), int(argv[1]), float(argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in argv[3:] or sorted(known):
        tried = try_harness(known[name], attempts_of(known[name], budget_ms), seed, folder, folder / f"{name}.in-work")
        sys.stdout.write(msgspec.json.encode(tried).decode() + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
