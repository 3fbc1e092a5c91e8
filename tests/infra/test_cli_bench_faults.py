"""`headwater bench faults` as a person meets it, short of the hour that it takes; and what its table says."""

from __future__ import annotations

import subprocess
import sys

from infra.faults.long import Plan, Progress, machine
from infra.faults.rounds import Row
from infra.faults.table import markdown, total

HEADWATER = [sys.executable, "-m", "infra.cli", "bench", "faults"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HEADWATER, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_it_lists_its_faults() -> None:
    done = run("--list")
    assert done.returncode == 0
    assert {"kill -9: leaf agent", "link cut (black hole)", "region broker's disk full"} <= set(done.stdout.splitlines())


def test_an_unknown_fault_is_said_before_anything_is_started() -> None:
    done = run("--only", "meteorite")
    assert done.returncode == 1
    assert "no fault is named 'meteorite'" in done.stderr
    assert "--list" in done.stderr


def row(fault: str, **fields: object) -> Row:
    return Row(**{"fault": fault, "records": 10, "longest_pause_s": 1.5, **fields})  # type: ignore[arg-type]


def test_rounds_of_one_fault_add_up() -> None:
    progress = Progress()
    progress.take(row("cut", repeated_verdicts=2))
    progress.take(row("cut", longest_pause_s=9.0, unaccounted=1, failures=("gone",)))
    progress.take(row("kill", real_frames=4))
    assert (progress.rounds, progress.records) == (3, 30)
    cut = progress.rows["cut"]
    assert (cut.rounds, cut.records, cut.unaccounted, cut.repeated_verdicts, cut.longest_pause_s) == (2, 20, 1, 2, 9.0)
    everything = total(list(progress.rows.values()))
    assert (everything.rounds, everything.records, everything.real_frames, everything.failures) == (3, 30, 4, ("gone",))


def test_the_markdown_holds_the_numbers_the_command_and_what_did_not_hold() -> None:
    text = markdown([row("cut", records=1234, unaccounted=3, failures=("3 are gone",))], machine(), "headwater bench faults --seed 1", 61.0)
    assert "| cut | 1 | 1,234 | 3 | 0 | 0 | 0 | 1.5 s |" in text
    assert "    headwater bench faults --seed 1" in text
    assert "- cut: 3 are gone" in text


def test_only_and_skip_choose_by_name() -> None:
    from pathlib import Path

    from infra.faults.catalogue import SHARED

    names = {fault.name for fault in Plan(minutes=1, seed=0, only=("LINK",), skip=("reset",), folder=Path()).wanted(SHARED)}
    assert "link flapping" in names
    assert "kill -9: link" in names
    assert not any("reset" in name or "disk" in name for name in names)
