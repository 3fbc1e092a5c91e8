"""`headwater broker` as a person and a script use it: processes of their own, their output, their exit codes, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

Eventually = Callable[..., None]
HEADWATER = [sys.executable, "-c", "import sys; sys.argv[0] = 'headwater'; from infra.cli import main; main()"]


class Shell:
    """Runs `headwater` with a data folder of its own, and kills what a failed test leaves."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "HEADWATER_DATA": str(home), "COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*HEADWATER, *arguments], capture_output=True, text=True, timeout=90, env=self.environment)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """In a session of its own, as under a terminal of its own."""
        argv = [*HEADWATER, *arguments]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, start_new_session=True
        )

    def status(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads(self.run("broker", "status", "--json").stdout)}

    def processes(self) -> list[psutil.Process]:
        """All that name this data folder in their command line: JVMs and their guards."""
        return [p for p in psutil.process_iter(["cmdline"]) if any(str(self.home) in word for word in p.info["cmdline"] or ())]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "data")
    yield shell
    for process in shell.processes():
        process.kill()


def test_ctrl_c_ends_the_foreground_and_leaves_nothing_behind(shell: Shell) -> None:
    up = shell.begin("broker", "up", "--port", "0")
    assert up.stdout is not None
    line = up.stdout.readline()
    assert line.startswith("broker local is ready at 127.0.0.1:")
    assert AdminClient({"bootstrap.servers": line.split()[-1]}).list_topics(timeout=20).cluster_id
    assert len(shell.processes()) == 2  # the JVM and its guard

    os.killpg(up.pid, signal.SIGINT)  # what a terminal does
    _, errors = up.communicate(timeout=60)
    assert up.returncode == 130
    assert "stopping broker local" in errors
    assert "Traceback" not in errors
    assert not shell.processes()
    assert shell.status()["local"]["state"] == "stopped"


def test_one_in_the_foreground_can_be_stopped_from_elsewhere(shell: Shell) -> None:
    up = shell.begin("broker", "up", "leaf", "--port", "0", "--json")
    assert up.stdout is not None
    ready = json.loads("".join(iter(up.stdout.readline, "}\n")) + "}")
    shown = shell.status()["leaf"]
    assert (shown["state"], shown["bootstrap_servers"], shown["pid"]) == ("running", ready["bootstrap_servers"], ready["pid"])
    assert 50e6 < shown["resident_bytes"] < 400e6
    assert shown["data_bytes"] > 0
    assert psutil.Process(shown["pid"]).name() == "java"
    down = shell.run("broker", "down", "leaf")
    assert (down.returncode, down.stdout) == (0, f"broker leaf at {ready['bootstrap_servers']} was stopped\n")
    _, errors = up.communicate(timeout=60)
    assert (up.returncode, errors.strip().splitlines()[-1]) == (0, "broker leaf was stopped")


def test_a_detached_one_lives_on_is_found_by_its_name_and_keeps_its_folder(shell: Shell, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    up = shell.run("broker", "up", "region", "--port", "0", "--data-dir", str(elsewhere), "--detach", "--json")
    assert up.returncode == 0, up.stderr
    ready = json.loads(up.stdout)
    assert ready["folder"] == str(elsewhere)
    assert AdminClient({"bootstrap.servers": ready["bootstrap_servers"]}).list_topics(timeout=20).cluster_id == ready["cluster_id"]

    again = shell.run("broker", "up", "region", "--port", "0")
    assert again.returncode == 1
    assert f"in use by a broker at {ready['bootstrap_servers']} (pid {ready['pid']})" in again.stderr
    assert "running" in shell.run("broker", "status").stdout
    assert "QuorumController" in shell.run("broker", "logs", "region", "-n", "5").stdout

    assert shell.run("broker", "down", "--all").stdout == f"broker region at {ready['bootstrap_servers']} was stopped\n"
    assert not psutil.pid_exists(ready["pid"])
    assert shell.run("broker", "down", "region").stdout == "broker region does not run\n"

    back = json.loads(shell.run("broker", "up", "region", "--port", "0", "--detach", "--json").stdout)
    assert (back["folder"], back["cluster_id"]) == (str(elsewhere), ready["cluster_id"])
    shell.run("broker", "down", "region")


def test_the_log_is_followed_until_ctrl_c(shell: Shell, eventually: Eventually) -> None:
    folder = shell.home / "brokers" / "local"
    folder.mkdir(parents=True)
    log = folder / "broker.log"
    log.write_text("one\ntwo\n")
    follow = shell.begin("broker", "logs", "-f", "-n", "1")
    assert follow.stdout is not None
    assert follow.stdout.readline() == "two\n"
    with log.open("a") as file:
        file.write("three\n")
    assert follow.stdout.readline() == "three\n"
    log.replace(folder / "broker.log.1")
    log.write_text("anew\n")
    assert follow.stdout.readline() == "anew\n"
    os.killpg(follow.pid, signal.SIGINT)
    _, errors = follow.communicate(timeout=20)
    assert (follow.returncode, "Traceback" in errors) == (130, False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["down", "nobody"], 1, "there is no broker nobody: `headwater broker up` starts one"),
        (["logs", "nobody"], 1, "there is no log "),
        (["up", "--host", "0.0.0.0"], 2, "clients dial this address"),
        (["up", "A_b"], 2, "use lower-case letters"),
        (["up", "--port", "70000"], 2, "not in the range"),
        (["up", "--host", "192.0.2.1"], 1, "192.0.2.1 is not an address of this machine"),
    ],
)
def test_mistakes_are_told_with_what_to_do(shell: Shell, arguments: list[str], code: int, message: str) -> None:
    ran = shell.run("broker", *arguments)
    assert (ran.returncode, message in ran.stderr, "Traceback" in ran.stderr) == (code, True, False), ran.stderr


def test_without_brokers_status_says_how_to_start_one(shell: Shell) -> None:
    assert shell.run("broker", "status").stdout == "no local broker yet: `headwater broker up` starts one\n"
    assert json.loads(shell.run("broker", "status", "--json").stdout) == []
