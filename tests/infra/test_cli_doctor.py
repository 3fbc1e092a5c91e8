"""`headwater doctor`: what it finds on this machine, and that every fault comes with its fix."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import infra.doctor
from infra.doctor import State, examine
from infra.kafka.ports import free_port
from schemas.config import Kafka

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(infra.doctor, "BROKER_TIMEOUT_S", 1.0)
    monkeypatch.setenv("HEADWATER_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def site(tmp_path: Path, servers: str, more: str = "") -> Path:
    path = tmp_path / "leaf.toml"
    path.write_text(f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{servers}"\n{more}')
    return path


def findings(ran: Any) -> dict[str, dict[str, str]]:
    return {finding["subject"]: finding for finding in msgspec.json.decode(ran.out)["findings"]}


def test_without_a_site_the_machine_is_looked_at(headwater: Run) -> None:
    ran = headwater("doctor", "--json")
    found = findings(ran)
    assert {"python", "onnxruntime", "java", "cores", "memory", "disk for cache", "disk for data", "model", "engine"} <= found.keys()
    assert "kafka" not in found
    assert ran.code == (1 if any(one["state"] == "fault" for one in found.values()) else 0)
    for one in found.values():
        assert one["said"]
        assert one["fix"] or one["state"] in {"ok", "info"}, one


def test_a_site_whose_topics_are_there_is_fit(headwater: Run, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    path = site(tmp_path, kafka.bootstrap_servers, f'[topics]\nprefix = "{prefix}"\n')
    found = findings(headwater("doctor", "-c", path, "--json"))
    assert found["kafka"]["state"] == "ok"
    assert found[f"port {kafka.bootstrap_servers.rpartition(':')[2]}"]["said"] == "a Kafka listens there"
    assert (found["topics"]["state"], found["topics"]["fix"]) == ("fault", "`headwater topology create` creates them")
    headwater("topology", "create", "-c", path)
    found = findings(headwater("doctor", "-c", path, "--json"))
    assert found["topics"]["state"] == "ok"
    assert re.fullmatch(r"(\d+) of \1 exist, 0 errors, 0 warnings", found["topics"]["said"])


def test_a_broker_that_is_not_there(headwater: Run, tmp_path: Path) -> None:
    port = free_port()
    path = site(tmp_path, f"127.0.0.1:{port}", '[link.region]\nbootstrap_servers = "no-such-host.invalid:9092"\n')
    ran = headwater("doctor", "-c", path)
    assert ran.code == 1
    told = " ".join(ran.out.split())
    assert f"fault kafka no Kafka broker answered at 127.0.0.1:{port}" in told
    assert f"warning port {port} is free: no Kafka listens there -> `headwater broker up --port {port}` starts one" in told
    assert "the name no-such-host.invalid cannot be resolved" in told, "the leaf works alone: its region is a warning"
    assert "1 fault" in told


def test_a_port_that_another_program_holds_is_named(headwater: Run, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        found = findings(headwater("doctor", "-c", site(tmp_path, f"127.0.0.1:{port}"), "--json"))
    finding = found[f"port {port}"]
    assert finding["state"] == "fault"
    assert f"(pid {os.getpid()})" in finding["said"]
    assert "it is not a Kafka that answers" in finding["said"]


def test_a_wrong_file_is_a_finding_and_the_rest_is_looked_at(headwater: Run, tmp_path: Path) -> None:
    path = site(tmp_path, "127.0.0.1:9092", "[topics]\npartitions = 0\n")
    ran = headwater("doctor", "-c", path, "--json")
    found = findings(ran)
    assert ran.code == 1
    assert "$.topics.partitions is 0" in found["configuration"]["said"]
    assert "memory" in found


def test_the_file_of_this_folder_is_taken_if_it_is_there(headwater: Run, tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text('name = "here"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n')
    assert findings(headwater("doctor", "--json"))["configuration"]["said"] == "headwater.toml: leaf here"


@pytest.mark.parametrize(
    ("free", "state"), [(infra.doctor.LEAST_DISK - 1, "fault"), (infra.doctor.WANTED_DISK - 1, "warning"), (infra.doctor.WANTED_DISK, "ok")]
)
def test_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert {finding.state for finding in infra.doctor.disk(None)} == {State(state)}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWATER_DATA", str(tmp_path / "file" / "below"))
    found = {finding.subject: finding for finding in infra.doctor.disk(None)}
    assert found["disk for data"].state is State.FAULT
    assert "HEADWATER_DATA" in found["disk for data"].fix


def test_engines_that_are_not_to_be_had_are_told_with_the_reason(headwater: Run, tmp_path: Path) -> None:
    model = Path(__file__).with_name("none.onnx")
    path = site(tmp_path, "127.0.0.1:1", f'[detector]\nmodel = "{model}"\n')
    found = findings(headwater("doctor", "-c", path, "--json"))
    assert found["model"]["state"] == "fault"
    assert found["engine"]["state"] == "fault"
    assert found["engine"]["fix"]


def test_more_work_than_cores_is_a_warning(headwater: Run, tmp_path: Path) -> None:
    path = site(tmp_path, "127.0.0.1:1", "[engine]\nworkers = 64\nthreads = 2\n")
    finding = findings(headwater("doctor", "-c", path, "--json"))["cores"]
    assert finding["state"] == "warning"
    assert "asks for 128" in finding["said"]


def test_no_java_is_a_fault_only_where_kafka_would_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from infra.kafka.java import JavaMissing
    from schemas.config import SiteConfig

    def none() -> None:
        raise JavaMissing("Kafka needs Java 17 or newer: none was found")

    monkeypatch.setattr("infra.kafka.java.find_java", none)
    elsewhere = SiteConfig(name="a", tier="leaf", kafka=Kafka(bootstrap_servers="kafka.example.net:9092"))
    assert next(infra.doctor.java(None)).state is State.FAULT
    assert next(infra.doctor.java(elsewhere)).state is State.INFO


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("odd machine")

    monkeypatch.setattr("psutil.virtual_memory", broken)
    found = {finding.subject: finding for finding in examine(None)}
    assert found["memory"].state is State.FAULT
    assert "odd machine" in found["memory"].said
    assert "engine" in found, "the others are looked at all the same"


def test_the_disk_is_held_against_what_the_topics_may_take(headwater: Run, tmp_path: Path) -> None:
    small = site(
        tmp_path,
        "127.0.0.1:1",
        f'[topics]\noutbox_retention_bytes = 1048576\nframes_retention_bytes = 1048576\n[disk]\npath = "{tmp_path}"\n',
    )
    found = findings(headwater("doctor", "-c", small, "--json"))["kafka disk"]
    assert (found["state"], "at most" in found["said"], str(tmp_path) in found["said"]) == ("ok", True, True)
    large = site(tmp_path, "127.0.0.1:1", f'[topics]\noutbox_retention_bytes = 1099511627776\n[disk]\npath = "{tmp_path}"\n')
    found = findings(headwater("doctor", "-c", large, "--json"))["kafka disk"]
    assert (found["state"], "outbox_retention_bytes" in found["fix"]) == ("warning", True)
    unknown = site(tmp_path, "10.0.0.5:9092", "")
    assert findings(headwater("doctor", "-c", unknown, "--json"))["kafka disk"]["state"] == "info"
