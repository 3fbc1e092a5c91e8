"""The sites that the fault tests share: one pair serves many tests, one after the other; after a test that breaks it comes a new pair."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.faults.fleet import Fleet
from infra.faults.rounds import Fault, Row, play
from infra.faults.sites import Workload, spots_workload

SOURCES, FPS = 4, 12.0


class Shared:
    """The pair of sites that is up now."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.folder, self.workload = folder, workload
        self.fleet: Fleet | None = None
        self.count = 0

    def up(self) -> Fleet:
        if self.fleet is None:
            self.count += 1
            self.fleet = Fleet(self.folder / f"pair-{self.count}", self.workload, sources=SOURCES, fps=FPS).start()
        return self.fleet

    def down(self) -> None:
        if self.fleet is not None:
            self.fleet.stop()
            shutil.rmtree(self.fleet.folder / "kafka-leaf", ignore_errors=True)
            shutil.rmtree(self.fleet.folder / "kafka-region", ignore_errors=True)
            self.fleet = None


@pytest.fixture(scope="session")
def seed() -> int:
    """Of everything that the faults choose; printed with each row, so that a failure can be tried again (HEADWATER_FAULT_SEED)."""
    return int(os.environ.get("HEADWATER_FAULT_SEED") or random.SystemRandom().randrange(1 << 16))


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return spots_workload(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> Iterator[Shared]:
    pair = Shared(tmp_path_factory.mktemp("faults"), workload)
    yield pair
    pair.down()


@pytest.fixture
def under(shared: Shared, seed: int) -> Iterator[Callable[..., Row]]:
    """Do a fault to the shared sites and hold what the judge says: `under(fault)`; further arguments are those of `rounds.play`."""
    held: list[Row] = []

    def do(fault: Fault, **how: Any) -> Row:
        row = play(shared.up(), fault, seed, **how)
        held.append(row)
        show(row, seed)
        hold(row)
        return row

    try:
        yield do
    finally:
        if not held or held[-1].failures:
            shared.down()  # the next test begins anew


def show(row: Row, seed: int) -> None:
    print(  # noqa: T201 - what a person looks for when a test fails
        f"\n{row.fault}: {row.records} records, {row.repeated_verdicts} duplicates downstream, longest pause {row.longest_pause_s:.1f} s, "
        f"settled after {row.settled_s:.1f} s, seed {seed}; {'; '.join(row.evidence)}",
        *(f"\n  did not hold: {failure}" for failure in row.failures),
    )


def hold(row: Row) -> None:
    """What must be true after every fault."""
    assert not row.failures, "\n".join(row.failures)
    assert row.evidence, "the fault is not shown to have happened"
    assert row.unaccounted == row.repeated_results == row.wrong == 0


@pytest.fixture(scope="session")
def held() -> Callable[[Row, int], None]:
    """Show a row and hold it, for tests with sites of their own."""

    def both(row: Row, seed: int) -> None:
        show(row, seed)
        hold(row)

    return both


@pytest.fixture(scope="session")
def compiler() -> None:
    """A C compiler, installed on Debian if it is not there."""
    if shutil.which("cc") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "gcc", "libc6-dev"]):
            subprocess.run(command, check=True, timeout=300, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
