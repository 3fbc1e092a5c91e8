"""`headwater accuracy` as a person and a program see it, on a real cluster."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.accuracy import Accuracy
from schemas.config import Kafka, SiteConfig, Topics
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.sink import Sink
from streams.topology import Role, Topology

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
SHARES = {
    f"{answers}_{measure}{end}": value
    for answers, value in (("leaf", 0.8), ("results", 0.9))
    for measure in ("precision", "recall", "f1")
    for end in ("", "_low", "_high")
}


def told(source: str, model: str, minute: int, **more: Any) -> Accuracy:
    until = NOON + dt.timedelta(minutes=minute)
    base: dict[str, Any] = {"since": NOON, "until": until, "frames": 400, "missing": 3, "level": 0.95, "against": "region"}
    digest = model.encode().hex().ljust(64, "0")
    return Accuracy(**{"source": source, "site": "leaf-1", "model": model, "model_digest": digest, **base, **more})


@pytest.fixture
def file(kafka: Kafka, prefix: str, tmp_path: Path) -> Path:
    """A site's file, with what its leaf has said: cam-1 was answered by two models, of cam-2 too few frames were judged."""
    config = SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix, partitions=2))
    topology, clients = Topology(config), Clients(kafka, "test")
    create_topics(topology, clients)
    topic, sink = topology.role(Role.LEAF).write("accuracy"), Sink(clients)
    for each in (
        told("cam-1", "new", 9, **{**SHARES, "leaf_f1": 0.5, "calibration_error": 0.07, "sure_from": 0.83, "sure_share": 0.4}),
        told("cam-1", "old", 5, **SHARES),
        told("cam-1", "new", 10, **SHARES, calibration_error=0.07, sure_from=0.83, sure_share=0.4),
        told("cam-2", "new", 3, frames=12, unknown="12 judged frames: expected at least 100"),
    ):
        sink.write_blocking([outputs.accuracy(topic, each)])
    sink.close()
    path = tmp_path / "leaf.toml"
    path.write_text(
        f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'[topics]\nprefix = "{prefix}"\npartitions = 2\n'
    )
    return path


def test_the_model_that_answers_now_is_shown_with_its_intervals(headwater: Callable[..., Any], file: Path) -> None:
    ran = headwater("accuracy", "-c", file)
    assert ran.code == 0
    assert "0.900 (0.90–0.90)" in ran.out
    assert "cam-1: new, until" in ran.out
    assert "3 audited frames were never judged, calibration error 0.070, sure from 0.83 on (40% of answers, risk 0.05)" in ran.out
    assert "old" not in ran.out
    assert "cam-2: not known yet, 12 judged frames: expected at least 100" in ran.out


def test_as_json_what_was_said_last_of_each_is_there(headwater: Callable[..., Any], file: Path) -> None:
    found = json.loads(headwater("accuracy", "cam-1", "--models", "-c", file, "--json").out)
    assert [(each["model"], each["leaf_f1"]) for each in found] == [("new", 0.8), ("old", 0.8)]
    assert [each["source"] for each in json.loads(headwater("accuracy", "-c", file, "--json").out)] == ["cam-1", "cam-2"]


def test_a_source_of_which_nothing_is_known_is_named(headwater: Callable[..., Any], file: Path) -> None:
    ran = headwater("accuracy", "cam-9", "-c", file)
    assert ran.code != 0
    assert "nothing is known here of the accuracy of cam-9: known are cam-1, cam-2" in ran.err


def test_a_region_says_where_accuracy_is_measured(headwater: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "region.toml"
    path.write_text('name = "r"\ntier = "region"\n[region]\nsites = ["leaf-1"]\n')
    ran = headwater("accuracy", "-c", path)
    assert ran.code != 0
    assert "measured at the leaves" in ran.err
