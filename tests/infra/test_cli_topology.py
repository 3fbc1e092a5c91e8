"""`headwater topology` as a person and a program use it, on a real broker."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient

from schemas.config import Kafka

Run = Callable[..., Any]


@pytest.fixture
def leaf(kafka: Kafka, prefix: str, tmp_path: Path) -> Path:
    path = tmp_path / "leaf.toml"
    path.write_text(
        f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'[topics]\nprefix = "{prefix}l."\npartitions = 2\n[link.region]\nbootstrap_servers = "127.0.0.1:1"\n'
    )
    return path


def test_check_create_check_and_a_deleted_topic(headwater: Run, leaf: Path, kafka: Kafka, prefix: str) -> None:
    code, told, _ = headwater("topology", "check", "-c", leaf, "--no-region")
    assert code == 1
    assert f"error   {prefix}l.frames does not exist (used by leaf, operator, producer)" in told
    missing = int(re.search(r"(\d+) errors", told)[1])  # type: ignore[index]
    assert told.count("-> `headwater topology create` creates it") == 1, "the fix is said once for all that it mends"

    code, told, _ = headwater("topology", "create", "-c", leaf)
    assert code == 0
    assert f"created {prefix}l.alerts.evidence\n" in told
    assert told.count("created ") == missing
    code, told, _ = headwater("topology", "create", "-c", leaf)
    assert (code, told) == (0, f"nothing to do: all {missing} topics exist at {kafka.bootstrap_servers}\n")

    code, told, _ = headwater("topology", "check", "-c", leaf, "--no-region")
    assert code == 0, told
    assert told.endswith("clean: as declared\n")
    assert re.search(rf"{prefix}l\.escalations +24 hours", told), "how long an outage is survived"
    assert re.search(r"its topics take [\d.]+ GiB at most", told), "what the disk must hold"

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([f"{prefix}l.alerts"])[f"{prefix}l.alerts"].result(10)
    code, told, _ = headwater("topology", "check", "-c", leaf, "--no-region", "--json")
    assert code == 1
    answer = msgspec.json.decode(told)
    wrong = [finding for finding in answer["clusters"][0]["findings"] if finding["severity"] == "error"]
    assert [(finding["code"], finding["subject"]) for finding in wrong] == [("missing-topic", f"{prefix}l.alerts")]
    assert (answer["errors"], answer["warnings"]) == (1, 0)
    code, told, _ = headwater("topology", "create", "-c", leaf, "--json")
    assert msgspec.json.decode(told)["created"] == [f"{prefix}l.alerts"]


def test_a_region_that_is_away_is_no_error_unless_it_was_asked_for(headwater: Run, leaf: Path) -> None:
    headwater("topology", "create", "-c", leaf)
    code, told, _ = headwater("topology", "check", "-c", leaf)
    assert code == 0
    assert "info    region region was not checked: no Kafka broker answered at 127.0.0.1:1" in told
    code, told, _ = headwater("topology", "check", "-c", leaf, "--region")
    assert code == 1
    assert "error   region region was not checked" in told


def test_the_regions_side_of_the_link(headwater: Run, leaf: Path, kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    leaf.write_text(leaf.read_text().replace("127.0.0.1:1", kafka.bootstrap_servers))
    headwater("topology", "create", "-c", leaf)
    code, told, _ = headwater("topology", "check", "-c", leaf, "--region")
    assert code == 1
    assert f"{prefix}l.up.leaf-1.escalations does not exist (used by link, operator, region)" in told
    assert "name site leaf-1 in region.sites of the region's file" in told
    region = tmp_path / "region.toml"
    region.write_text(
        f'name = "region"\ntier = "region"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'[topics]\nprefix = "{prefix}l."\npartitions = 2\n[region]\nsites = ["leaf-1"]\n'
    )
    assert headwater("topology", "create", "-c", region)[0] == 0
    code, told, _ = headwater("topology", "check", "-c", leaf, "--region", "--json")
    answer = msgspec.json.decode(told)
    assert [look["tier"] for look in answer["clusters"]] == ["leaf", "region"]
    assert answer["clusters"][1]["findings"] == [], "the region's own topics are as the link needs them"
    assert {one["source"]: one["waiting"] for one in answer["link"]}[f"{prefix}l.alerts"] == 0


def test_describe_needs_no_cluster(headwater: Run, leaf: Path, prefix: str) -> None:
    leaf.write_text(re.sub(r"127\.0\.0\.1:\d+", "nowhere.invalid:9092", leaf.read_text()))
    code, told, _ = headwater("topology", "describe", "-c", leaf)
    assert code == 0
    assert f"    Source: frames (topics: [{prefix}l.frames], partitions: 2, value: JPEG bytes)\n      --> leaf\n" in told
    assert f"    up   {prefix}l.alerts --> {prefix}l.up.leaf-1.alerts\n" in told
    code, told, _ = headwater("topology", "describe", "-c", leaf, "--json")
    answer = msgspec.json.decode(told)
    assert answer["site"] == "leaf-1"
    assert {part["role"] for part in answer["sub_topologies"]} == {
        "producer",
        "leaf",
        "resolver",
        "link",
        "reader",
        "operator",
        "accountant",
    }
    code, told, _ = headwater("topology", "describe", "-c", leaf, "--topics")
    assert re.search(rf"{prefix}l\.frames +2 parts +10 minutes +1 GiB", told)


def test_draw_writes_mermaid(headwater: Run, leaf: Path, tmp_path: Path) -> None:
    code, told, _ = headwater("topology", "draw", "-c", leaf)
    assert code == 0
    assert told.startswith("flowchart LR\n")
    target = tmp_path / "topology.mmd"
    code, nothing, said = headwater("topology", "draw", "-c", leaf, "-o", target)
    assert (code, nothing) == (0, "")
    assert str(target) in said.replace("\n", "")
    assert target.read_text() == told
    code, _, said = headwater("topology", "draw", "-c", leaf, "-o", tmp_path / "no" / "where")
    assert (code, said) == (1, f"headwater: {tmp_path}/no/where cannot be written: No such file or directory\n")


def test_what_is_missing_is_one_clear_message(headwater: Run, leaf: Path, tmp_path: Path) -> None:
    code, _, said = headwater("topology", "check", "-c", tmp_path / "none.toml")
    assert code == 1
    assert "none.toml: `headwater config init` writes one" in said
    leaf.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", leaf.read_text()))
    code, _, said = headwater("topology", "create", "-c", leaf)
    assert code == 1
    assert "no Kafka broker answered at 127.0.0.1:1" in said
    assert "Traceback" not in said
    assert "FAIL" not in said, "what the client library says while it tries is not for people"


def test_more_copies_than_brokers(headwater: Run, leaf: Path) -> None:
    leaf.write_text(leaf.read_text().replace("partitions = 2", "partitions = 2\nreplication = 2"))
    code, _, said = headwater("topology", "create", "-c", leaf)
    assert code == 1
    assert "topics.replication is 2: lower it, or add brokers" in said
