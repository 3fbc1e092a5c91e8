"""A campaign: every harness under the guided fuzzer for its share of the time, each in a process of its own, and what was found tried
again without instrumentation, so that only what is true is told."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from infra.faults.fuzz.guided import FINDINGS, HANG_S
from infra.faults.fuzz.trial import Finding
from infra.processes import Child
from schemas.errors import Fault

NICE = 10
START_S = 60.0  # imports, instrumented
REPLAY_S = 60.0
LEAST_S = 2.0
_ARTIFACT = re.compile(r"(.+)-(crash|timeout|oom|slow-unit)-[0-9a-f]+\Z")
_STAT = re.compile(rb"^stat::(\w+): +(\d+)", re.MULTILINE)


class CannotFuzz(Fault, RuntimeError):
    """The fuzzer is not there; the message says what to do."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one harness. `seconds` is the time of its processes; `findings` broke their law when tried again, `passing` did not."""

    harness: str
    executions: int
    seconds: float
    findings: tuple[Finding, ...]
    passing: int
    peak_rss_bytes: int

    @property
    def executions_per_s(self) -> float:
        return self.executions / self.seconds if self.seconds else 0.0


def run(
    names: Sequence[str], seconds: float, folder: Path, *, seed: int = 1, tick: Callable[[str, float], None] = lambda *_: None
) -> Iterator[Outcome]:
    """Run harnesses one after the other, each for its share of some seconds; yields what came of each.

    Parameters
    ----------
    folder
        Where the corpus grows (a later campaign goes on from it), findings and logs are kept.
    tick
        Told the harness in work and its seconds so far, several times a second.

    Raises
    ------
    CannotFuzz
        If atheris is not installed.
    """
    if importlib.util.find_spec("atheris") is None:
        raise CannotFuzz("fuzzing needs atheris: install it with `pip install 'headwater[test]'`")
    folder = folder.absolute()
    (folder / "findings").mkdir(parents=True, exist_ok=True)
    for name in names:
        yield _one(name, max(LEAST_S, seconds / len(names)), folder, seed, tick)


def _one(name: str, share_s: float, folder: Path, seed: int, tick: Callable[[str, float], None]) -> Outcome:
    told, log = folder / FINDINGS, folder / "logs" / f"{name}.log"
    told.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    left_s, spent_s, rounds, stats = share_s, 0.0, 0, {"number_of_executed_units": 0, "peak_rss_mb": 0}
    before = set((folder / "findings").iterdir())
    while left_s >= LEAST_S and rounds < 5:  # a native crash ends a round
        rounds += 1
        start = log.stat().st_size if log.exists() else 0
        ran_s = _round(name, folder, log, left_s, seed + rounds - 1, lambda s: tick(name, spent_s + s))  # noqa: B023 - called in this round
        said = log.read_bytes()[start:]
        found = {key.decode(): int(value) for key, value in _STAT.findall(said)}
        if not found:  # the others go on
            last = b" | ".join(said.splitlines()[-3:]).decode(errors="replace")
            broken = Finding(harness=name, error=f"the harness did not run; its log, {log}, ends with: {last}", place="start")
            return Outcome(harness=name, executions=0, seconds=ran_s, findings=(broken,), passing=0, peak_rss_bytes=0)
        stats["number_of_executed_units"] += found.get("number_of_executed_units", 0)
        stats["peak_rss_mb"] = max(stats["peak_rss_mb"], found.get("peak_rss_mb", 0))
        spent_s += ran_s
        left_s -= ran_s
        if b"\nDone " in said:
            break
    findings, passing = _confirmed(name, folder, told, before)
    return Outcome(
        harness=name,
        executions=stats["number_of_executed_units"],
        seconds=spent_s,
        findings=findings,
        passing=passing,
        peak_rss_bytes=stats["peak_rss_mb"] << 20,
    )


def _round(name: str, folder: Path, log: Path, seconds: float, seed: int, tick: Callable[[float], None]) -> float:
    argv = [sys.executable, "-m", "infra.faults.fuzz.guided", name, str(folder), str(round(seconds)), str(seed)]
    limit_s, waited = seconds + START_S + 2 * HANG_S, 0.0
    with Child(f"fuzz {name}", argv, log_path=log, nice=NICE, grace_s=1.0) as child:
        while waited < limit_s:
            with contextlib.suppress(TimeoutError):
                child.wait(0.25)
                break
            waited += 0.25
            tick(waited)
    return waited


def _confirmed(name: str, folder: Path, told: Path, before: set[Path]) -> tuple[tuple[Finding, ...], int]:
    """What breaks its law when it is tried again, and how many inputs did not."""
    candidates = [msgspec.json.decode(line, type=Finding) for line in told.read_bytes().splitlines()] if told.exists() else []
    for path in sorted(set((folder / "findings").iterdir()) - before):
        if (match := _ARTIFACT.match(path.name)) and match[1] == name and match[2] != "slow-unit":
            candidates.append(Finding(harness=name, error=f"native {match[2]}", place=match[2], file=str(path)))
    confirmed, passing = [], 0
    for each in candidates:
        again = replay(name, Path(each.file))
        if again is None:
            passing += 1
            shutil.move(each.file, f"{each.file}.passes")
        else:
            confirmed.append(msgspec.structs.replace(again, file=each.file))
    return tuple(confirmed), passing


def replay(name: str, file: Path) -> Finding | None:
    """Try a saved input again, uninstrumented, in a process of its own; what it breaks, None if nothing."""
    output = file.with_name(f"{file.name}.replay")
    output.unlink(missing_ok=True)
    try:
        child = Child(f"replay {name}", [sys.executable, "-m", "infra.faults.fuzz.trial", "--replay", name, str(file)], log_path=output)
        with child:
            try:
                code = child.wait(REPLAY_S)
            except TimeoutError:
                return Finding(harness=name, error=f"it does not end within {REPLAY_S:g} s", place="hang", file=str(file))
        if code not in (0, 1):
            return Finding(harness=name, error=f"it ends the process (exit code {code})", place="native", file=str(file))
        found = msgspec.json.decode(output.read_bytes().splitlines()[-1], type=list[Finding])
        return found[0] if found else None
    finally:
        output.unlink(missing_ok=True)
