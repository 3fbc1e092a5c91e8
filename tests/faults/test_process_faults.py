"""Processes and brokers that are killed, stopped, frozen, and workers that come and go, under load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.faults.kills import CHAOS, FREEZES, KILLS, REBALANCE
from infra.faults.rounds import Row

pytestmark = pytest.mark.timeout(300)
_KILL = {fault.name.removeprefix("kill -9: "): fault for fault in KILLS}
_FREEZE = {fault.name.removeprefix("SIGSTOP: "): fault for fault in FREEZES}


def test_processes_killed_at_random_moments(under: Callable[..., Row]) -> None:
    under(CHAOS, length_s=14.0)


@pytest.mark.parametrize("victim", ["leaf agent", "leaf broker", "region broker"])
def test_one_is_killed_and_comes_back(under: Callable[..., Row], victim: str) -> None:
    under(_KILL[victim])


def test_workers_join_and_leave(under: Callable[..., Row]) -> None:
    under(REBALANCE)


def test_a_worker_that_stood_still_does_no_harm_when_it_wakes(under: Callable[..., Row]) -> None:
    under(_FREEZE["leaf agent"], length_s=12.0)
