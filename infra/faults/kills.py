"""Faults of processes: killed, stopped in order, frozen, and workers that come and go."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import psutil

from infra.faults.fleet import Fleet
from infra.faults.rounds import Act, Broken, Fault, Setting
from infra.faults.service import FaultDidNotHappen

VICTIMS = ("producer", "leaf agent", "leaf resolver", "link", "region agent", "region resolver", "leaf broker", "region broker")


def kill(victim: str) -> Act:
    """SIGKILL at a random moment; the service manager starts it again."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        setting.moment()
        death = fleet[victim].kill(signal.SIGKILL)
        fleet.wait(f"{victim} to be back", lambda: fleet[victim].alive and fleet[victim].ready())
        back_s = time.time() - death.at
        setting.moment()
        yield f"{victim} (pid {death.pid}) ended by signal 9, takes records again after {back_s:.1f} s"

    return act


def terminate(victim: str) -> Act:
    """SIGTERM, as a service manager restarts a process after an update."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        setting.moment()
        start = time.monotonic()
        death = fleet[victim].stop()
        took_s = time.monotonic() - start
        if death.code not in (0, 143):
            raise Broken(f"{victim} ended with code {death.code} after SIGTERM")
        if victim == "leaf broker":
            fleet.start_leaf_broker()
        else:
            fleet[victim].start()
        fleet.wait(f"{victim} to be back", lambda: fleet[victim].alive and fleet[victim].ready())
        setting.moment()
        yield f"{victim} (pid {death.pid}) ended with code {death.code} in {took_s:.1f} s after SIGTERM"

    return act


def freeze(victim: str) -> Act:
    """SIGSTOP for a while: alive to the system, silent to everybody else; then it wakes up and knows nothing of it."""

    def act(fleet: Fleet, setting: Setting) -> Iterator[str]:
        setting.moment()
        pid = fleet[victim].pid
        fleet[victim].freeze()
        try:
            time.sleep(0.2)
            if psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                raise FaultDidNotHappen(f"{victim} (pid {pid}) was not stopped")
            time.sleep(setting.length_s)
        finally:
            fleet[victim].thaw()
        fleet.wait(f"{victim} to take records again", lambda: fleet[victim].alive and fleet[victim].ready())
        yield f"{victim} (pid {pid}) stood still for {setting.length_s:.0f} s"

    return act


def rebalance(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Under load a second worker of the leaf's agent joins, the first leaves and comes back, the second leaves: both of the hot group and
    of Faust's own consumer."""
    first, second = fleet["leaf agent"], fleet.second_agent()
    hot, cold = f"{fleet.leaf_name}.leaf", f"{fleet.leaf_name}.leaf.faust"
    seen = []

    def members(count: int) -> None:
        fleet.wait(f"{count} members in {hot} and {cold}", lambda: fleet.leaf.members(hot) == fleet.leaf.members(cold) == count)
        fleet.wait_ready()
        seen.append(count)

    second.start()
    members(2)
    setting.moment()
    first.stop()
    members(1)
    setting.moment()
    first.start()
    members(2)
    setting.moment()
    second.stop()
    members(1)
    yield f"groups {hot} and {cold} had {', '.join(map(str, seen))} members"


def everything(fleet: Fleet, setting: Setting) -> Iterator[str]:
    """Kill processes one after the other at random moments, without waiting for any to come back."""
    end = time.monotonic() + setting.length_s
    victims = [name for name in VICTIMS if not name.endswith("broker")]
    killed = []
    while time.monotonic() < end:
        setting.moment(2.5)
        victim = setting.chance.choice(victims)
        if fleet[victim].alive:
            fleet[victim].kill()
            killed.append(victim)
    fleet.wait_ready()
    yield f"killed by signal 9: {', '.join(killed)}"


KILLS = tuple(Fault(f"kill -9: {victim}", kill(victim)) for victim in VICTIMS)
STOPS = tuple(Fault(f"SIGTERM: {victim}", terminate(victim)) for victim in VICTIMS)
FREEZES = tuple(Fault(f"SIGSTOP: {victim}", freeze(victim), length_s=14.0) for victim in VICTIMS)
REBALANCE = Fault("SIGTERM rebalance, two workers", rebalance)
CHAOS = Fault("kill -9: any, at random moments", everything, length_s=30.0)
