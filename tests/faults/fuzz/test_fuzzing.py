"""Every decoder of bytes from outside, under its law: thousands of seeded changes of valid and nasty inputs, the same in every run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from infra.faults.fuzz.all import harnesses
from infra.faults.fuzz.harness import Broken, Harness, must
from infra.faults.fuzz.images import jpegs
from infra.faults.fuzz.records import kinds, nested, valid
from infra.faults.fuzz.trial import Tried, attempt, try_harness
from schemas.records import Record

BUDGET_MS = 120  # of one harness
PEAK_BYTES = 1200 << 20  # one picture of the largest size that is decoded has 192 MB, and some are decoded twice to be compared
LIMIT_S = 150


def test_every_value_that_travels_has_a_harness_and_a_valid_seed() -> None:
    names = {each.name for each in harnesses()}
    assert {f"record.{kind.__name__}" for kind in kinds()} | {f"json.{kind.__name__}" for kind in nested()} <= names
    product = [kind for kind in _all(Record) if kind.__module__.partition(".")[0] in {"schemas", "streams", "agents", "infra"}]
    assert {kind.__name__ for kind in product} == {kind.__name__ for kind in kinds()}
    missing = [kind.__name__ for kind in kinds() if not valid(kind)]
    assert not missing, f"give an example in infra.faults.fuzz.records.SAMPLES for {missing}"


def _all(base: type[Record]) -> set[type[Record]]:
    return {found for kind in base.__subclasses__() for found in (kind, *_all(kind))}


def test_every_decoder_holds_its_law_under_thousands_of_changes(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "infra.faults.fuzz.trial", str(tmp_path), "20260131", str(BUDGET_MS)]
    ran = subprocess.run(argv, capture_output=True, timeout=LIMIT_S, check=False)
    in_work = [path.name for path in tmp_path.glob("*.in-work")]
    assert ran.returncode == 0, f"the process ended with {ran.returncode} in {in_work}: {ran.stderr[-2000:]!r}"
    tried = {one.harness: one for one in (msgspec.json.decode(line, type=Tried) for line in ran.stdout.splitlines())}
    findings = [finding for one in tried.values() for finding in one.findings]
    assert not findings, findings
    assert set(tried) == {each.name for each in harnesses()}
    assert sum(one.executions for one in tried.values()) > 15_000
    pictures = sum(tried[name].executions for name in ("jpeg", "evidence", "evidence-encoding", "image-folder", "look"))
    assert pictures > 500
    assert sum(one.executions for name, one in tried.items() if name.startswith("request-")) > 1000
    assert max(one.peak_rss_bytes for one in tried.values()) < PEAK_BYTES


def test_coverage_guides_the_fuzzer_through_all_harnesses(tmp_path: Path) -> None:
    """A few seconds of the long form."""
    argv = [sys.executable, "-m", "infra.faults.fuzz.guided", "all", str(tmp_path), "8", "1"]
    ran = subprocess.run(argv, capture_output=True, timeout=LIMIT_S, check=False)
    said = ran.stderr.decode(errors="replace")
    assert ran.returncode == 0, said[-3000:]
    found = [path for path in (tmp_path / "findings").iterdir() if "slow-unit" not in path.name]
    assert not found, (tmp_path / "findings.jsonl").read_text() if (tmp_path / "findings.jsonl").exists() else found
    executions = re.search(r"number_of_executed_units: (\d+)", said)
    assert executions is not None
    assert int(executions[1]) > 100
    coverage = re.search(r"DONE +cov: (\d+)", said)
    assert coverage is not None
    assert int(coverage[1]) > 200


# ---- the laws themselves can be broken


def _harness(check: object) -> Harness:
    return Harness("made-for-this-test", check, lambda: [b"[1]", b"x"], 0.1)  # type: ignore[arg-type]


def _wrong(data: bytes) -> None:
    if b"9" in data:
        raise KeyError("9")


def test_a_decoder_that_raises_what_it_does_not_document_is_found_with_its_input(tmp_path: Path) -> None:
    tried = try_harness(_harness(_wrong), 3000, 1, tmp_path, tmp_path / "work")
    assert [finding.error for finding in tried.findings] == ["KeyError: '9'"]
    assert b"9" in Path(tried.findings[0].file).read_bytes()


def test_the_same_seed_tries_the_same_inputs(tmp_path: Path) -> None:
    runs: list[list[bytes]] = []
    for _ in range(2):
        seen: list[bytes] = []
        try_harness(_harness(seen.append), 500, 7, tmp_path, tmp_path / "work")
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 300


def test_what_is_slow_or_never_ends_is_found() -> None:
    def busy(_: bytes) -> None:
        sum(range(3_000_000))

    def endless(_: bytes) -> None:
        while True:
            pass

    slow = attempt(_harness(busy), b"", limit_s=0.001)
    assert slow is not None
    assert "processor time" in slow.error
    hang = attempt(_harness(endless), b"", alarm_s=0.2)
    assert hang is not None
    assert "did not end" in hang.error


def test_a_native_crash_leaves_its_input_behind(tmp_path: Path) -> None:
    script = """
import ctypes, sys
from pathlib import Path
from infra.faults.fuzz.harness import Harness
from infra.faults.fuzz.trial import try_harness
def check(data):
    if b"crash" in data:
        ctypes.string_at(0)
folder = Path(sys.argv[1])
try_harness(Harness("crasher", check, lambda: [b"fine", b"a crash", b"later"], 0.1), 0, 1, folder, folder / "crasher.in-work")
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=60, check=False)
    assert ran.returncode < 0
    left = (tmp_path / "crasher.in-work").read_bytes()
    assert left[8 : 8 + int.from_bytes(left[:8], "big")] == b"a crash"


def test_seeds_hold_what_cameras_send_and_what_they_should_not() -> None:
    whole = [data for data in jpegs() if data.startswith(b"\xff\xd8\xff")]
    assert len(whole) >= 12
    with pytest.raises(Broken, match="so it is"):
        must(False, "so it is")
