"""Children never outlive their parent, however it goes; what ends them is watched from outside, by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.processes import LOG_BYTES, Child, Group, ProcessFailed

Eventually = Callable[..., None]

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
# says when it is up, and does not mind SIGTERM; its own child sleeps in the same process group
STUBBORN = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "inner = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])\n"
    "print(inner.pid, flush=True)\n"
    "time.sleep(60)\n",
]
POLITE = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import signal, sys, time\n"
    "def bye(*_):\n"
    "    print('bye', flush=True)\n"
    "    sys.exit(7)\n"
    "signal.signal(signal.SIGTERM, bye)\n"
    "print('up', flush=True)\n"
    "time.sleep(60)\n",
]
# A parent: it starts the commands that it is given as children, prints their pids, and does what the last argument says.
PARENT = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from infra.processes import Child, Group, ended_by_signals
with ended_by_signals(), Group() as group:
    for number, argv in enumerate(json.loads(sys.argv[1])):
        child = Child(f"child {{number}}", argv)
        group.start(child)
        print(child.pid, flush=True)
    if sys.argv[2] == "leave":
        os._exit(0)
    if sys.argv[2] == "fork":
        if pid := os.fork():
            print(pid, flush=True)
    time.sleep(60)
"""
ROOT = str(Path(__file__).parents[2])


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def parent(commands: list[list[str]], then: str = "sleep") -> tuple[subprocess.Popen[str], list[int]]:
    """A parent in a process of its own, and the pids of its children."""
    argv = [sys.executable, "-c", PARENT.format(root=ROOT), json.dumps(commands), then]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    return process, [int(process.stdout.readline()) for _ in commands]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_its_output_goes_to_its_log_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    child = Child(
        "talker", [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"], {"WORD": "hello"}, tmp_path / "a.log"
    )
    assert child.start().wait(20) == 3
    assert lines(tmp_path / "a.log") == ["hello"]


def test_the_signal_that_ended_it_is_its_exit_code() -> None:
    with Child("sleeper", SLEEP) as child:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGABRT)
        assert child.wait(20) == -signal.SIGABRT


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ProcessFailed, match="there is no program no-such-program"):
        Child("nothing", ["no-such-program"]).start()


def test_it_has_a_session_of_its_own_so_the_terminal_does_not_reach_it() -> None:
    with Child("sleeper", SLEEP) as child:
        assert child.pid is not None
        assert os.getsid(child.pid) != os.getsid(0)
        assert os.getpgid(child.pid) != os.getpgid(0)


def test_it_is_asked_before_it_is_killed(tmp_path: Path, eventually: Eventually) -> None:
    child = Child("polite", POLITE, log_path=tmp_path / "p.log").start()
    eventually(lambda: lines(tmp_path / "p.log") == ["up"])
    assert child.stop(20) == 7
    assert lines(tmp_path / "p.log") == ["up", "bye"]
    assert child.stop(20) == 7  # again is no error


def test_one_that_does_not_listen_is_killed_with_all_that_it_started(tmp_path: Path, eventually: Eventually) -> None:
    child = Child("stubborn", STUBBORN, log_path=tmp_path / "s.log").start()
    eventually(lambda: bool(lines(tmp_path / "s.log")))
    inner = int(lines(tmp_path / "s.log")[0])
    assert child.stop(0.3) == -signal.SIGKILL
    eventually(lambda: gone(inner))


def test_what_a_child_leaves_behind_when_it_ends_goes_too(tmp_path: Path, eventually: Eventually) -> None:
    leaves = STUBBORN[-1].removesuffix("time.sleep(60)\n")
    assert Child("leaves", [*STUBBORN[:-1], leaves], log_path=tmp_path / "l.log").start().wait(20) == 0
    inner = int(lines(tmp_path / "l.log")[0])
    eventually(lambda: gone(inner))


def test_it_can_be_started_again_and_a_long_log_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "l.log"
    log.write_bytes(b"x" * (LOG_BYTES + 1))
    child = Child("talker", [sys.executable, "-I", "-S", "-c", "print('hello')"], log_path=log)
    assert child.start().wait(20) == 0
    assert child.start().wait(20) == 0
    assert lines(log) == ["hello", "hello"]
    assert (tmp_path / "l.log.1").stat().st_size == LOG_BYTES + 1


def test_it_gives_way_when_it_is_told_to() -> None:
    with Child("nice", SLEEP, nice=5) as child:
        assert psutil.Process(child.pid).nice() == psutil.Process().nice() + 5


def test_the_end_of_the_thread_that_started_it_is_not_its_end() -> None:
    child = Child("sleeper", SLEEP)
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    with pytest.raises(TimeoutError):
        child.wait(0.5)
    child.stop()


def test_kill_9_of_the_parent_leaves_nothing_behind(tmp_path: Path, eventually: Eventually) -> None:
    process, pids = parent([SLEEP, POLITE])
    assert not any(gone(pid) for pid in pids)
    guards = [psutil.Process(pid).ppid() for pid in pids]
    process.kill()
    process.wait(20)
    eventually(lambda: all(gone(pid) for pid in (*pids, *guards)))


def test_a_fork_of_the_parent_that_lives_on_does_not_keep_the_children(eventually: Eventually) -> None:
    process, pids = parent([SLEEP], "fork")  # the fork holds the parent's descriptors open
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    try:
        process.kill()
        eventually(lambda: gone(pids[0]))
        assert not gone(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        process.wait(20)


def test_a_parent_that_just_ends_leaves_nothing_behind(eventually: Eventually) -> None:
    process, pids = parent([SLEEP], "leave")
    assert process.wait(20) == 0
    eventually(lambda: gone(pids[0]))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_parent_that_is_told_to_end_stops_its_children_first(number: signal.Signals, code: int) -> None:
    process, pids = parent([SLEEP, SLEEP])
    process.send_signal(number)
    assert process.wait(20) == code
    assert all(gone(pid) for pid in pids)  # at once: it waited for them


if sys.platform == "linux":  # elsewhere the system has no such bond

    def test_kill_9_of_the_guard_ends_the_child(eventually: Eventually) -> None:
        child = Child("sleeper", SLEEP).start()
        assert child.pid is not None
        psutil.Process(child.pid).parent().kill()
        assert child.wait(20) == -signal.SIGKILL
        eventually(lambda: gone(child.pid))


def test_a_detached_one_lives_on_until_it_is_stopped(tmp_path: Path, eventually: Eventually) -> None:
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r})\nfrom infra.processes import Child\n"
        f"print(Child('daemon', {SLEEP!r}, log_path=__import__('pathlib').Path({str(tmp_path / 'd.log')!r}), detached=True).start().pid)"
    )
    pid = int(subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout)
    assert not gone(pid)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: gone(pid))


def test_a_group_stops_the_last_started_first(tmp_path: Path, eventually: Eventually) -> None:
    order = tmp_path / "order.log"
    with Group() as group:
        for word in ("first", "second", "third"):
            group.start(Child(word, [part.replace("'bye'", f"'bye {word}'") for part in POLITE], log_path=order))
        eventually(lambda: lines(order) == ["up"] * 3)
        assert group.watch(0.2) is None
    assert lines(order)[3:] == ["bye third", "bye second", "bye first"]


def test_a_group_tells_which_one_ended() -> None:
    with Group() as group:
        group.start(Child("stays", SLEEP))
        short = Child("goes", [sys.executable, "-I", "-S", "-c", "raise SystemExit(4)"])
        group.start(short)
        assert group.watch(20) is short
        assert short.poll() == 4


def test_a_group_starts_one_again_that_fell_over_but_not_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "f.log"
    fails = Child("fails", [sys.executable, "-I", "-S", "-c", "print('up'); raise SystemExit(1)"], log_path=log)
    with Group(restarts=2, backoff_s=0.01) as group:
        group.start(fails)
        assert group.watch(20) is fails
    assert lines(log) == ["up"] * 3


def test_what_a_signal_ended_has_restarts_of_its_own(tmp_path: Path) -> None:
    """A program that says why it ends seldom gets better by starting again; one that was killed had no say."""
    log = tmp_path / "k.log"
    code = f"import os; n = len(open({str(log)!r}).readlines()); print('up', flush=True); os.kill(os.getpid(), 9) if n < 4 else os._exit(1)"
    dies = Child("dies", [sys.executable, "-I", "-S", "-c", code], log_path=log)
    with Group(restarts=1, crashes=10, backoff_s=0.01) as group:
        group.start(dies)
        assert group.watch(30) is dies
    assert lines(log) == ["up"] * 6  # four ends by a signal, then two with an error: one restart too many


def test_exit_codes_that_are_no_word_of_the_program_count_as_crashes(tmp_path: Path) -> None:
    log = tmp_path / "h.log"
    hangs = Child("hangs", [sys.executable, "-I", "-S", "-c", "print('up', flush=True); raise SystemExit(70)"], log_path=log)
    with Group(restarts=0, crashes=3, crashed=frozenset({70}), backoff_s=0.01) as group:
        group.start(hangs)
        assert group.watch(30) is hangs
    assert lines(log) == ["up"] * 4


def test_the_pause_before_a_restart_starts_over_after_a_healthy_life() -> None:
    now = 0.0
    group = Group(restarts=100, crashes=100, backoff_s=1.0, healthy_s=60.0)
    pauses = []
    for lived_s in (0.1, 0.1, 0.1, 61.0, 0.1):
        group._started["x"] = now
        now += lived_s
        assert group._may_restart("x", -11, now)
        pauses.append(round(group._due["x"] - now, 6))
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0]
