"""Sites that are unusual from the start: a leaf whose clock (broker, processes, cameras) is two hours off, either way. One also has
a region on a small disk, which is filled; the other is on a small disk itself, and meets records that kill or hang who looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.faults.disk import DISK, LOW, LOW_DISK, small_disk
from infra.faults.fleet import Fleet
from infra.faults.records import HANGING_LIMIT, POISON
from infra.faults.rounds import Fault, Row, play
from infra.faults.sites import Workload
from infra.faults.wrong_clock import CLOCK, WRONG_S

pytestmark = pytest.mark.timeout(300)
INGRESS = {"max_age_ms": 120_000}  # by the broker's own clock nothing is old, so the limit on age may hold


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory, workload: Workload, compiler: None, shared: Any) -> Iterator[Fleet]:
    shared.down()  # the pair of the other tests would only take this one's processor
    folder = tmp_path_factory.mktemp("ahead")
    with (
        small_disk(folder / "disk") as disk,
        Fleet(
            folder / "sites",
            workload,
            sources=2,
            fps=8.0,
            ingress=INGRESS,
            leaf_clock_s=WRONG_S,
            region_folder=disk / "kafka-region",
        ) as fleet,
    ):
        yield fleet


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, workload: Workload, compiler: None) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("behind")
    with (
        small_disk(folder / "disk") as disk,
        Fleet(
            folder / "sites",
            workload,
            sources=2,
            fps=8.0,
            ingress=INGRESS,
            leaf_clock_s=-WRONG_S,
            leaf_folder=disk / "kafka-leaf",
            leaf_disk=LOW,
            engine=HANGING_LIMIT,
        ) as fleet,
    ):
        yield fleet


def test_a_clock_that_is_ahead(ahead: Fleet, seed: int, held: Callable[[Row, int], None]) -> None:
    held(play(ahead, CLOCK, seed, length_s=6.0), seed)


def test_the_disk_of_the_regions_broker_is_full(ahead: Fleet, seed: int, held: Callable[[Row, int], None]) -> None:
    held(play(ahead, DISK, seed, length_s=3.0), seed)


def test_a_clock_that_is_behind(behind: Fleet, seed: int, held: Callable[[Row, int], None]) -> None:
    held(play(behind, CLOCK, seed, length_s=6.0), seed)


def test_the_disk_of_the_leafs_broker_is_low(behind: Fleet, seed: int, held: Callable[[Row, int], None]) -> None:
    held(play(behind, LOW_DISK, seed, length_s=3.0), seed)


@pytest.mark.parametrize("fault", POISON, ids=[fault.name for fault in POISON])
def test_poison(behind: Fleet, seed: int, held: Callable[[Row, int], None], fault: Fault) -> None:
    held(play(behind, fault, seed), seed)
