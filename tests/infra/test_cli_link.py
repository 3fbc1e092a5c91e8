"""`headwater link` as a person and a program use it: on a real broker, with a link that runs, and with none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import infra.cli.link
from schemas.config import Kafka, SiteConfig
from schemas.links import LinkOrder
from streams.clients import Clients
from streams.cluster import create_topics
from streams.link import Link
from streams.restore import to_end
from streams.topology import Topology, region_view

Run = Callable[..., Any]


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> tuple[Path, SiteConfig]:
    """A leaf whose region is the same broker: names differ on both ends, so nothing can loop."""
    from infra.cli.common import load_config

    path = tmp_path / "leaf.toml"
    server = f'bootstrap_servers = "{kafka.bootstrap_servers}"\n'
    path.write_text(
        f'name = "leaf-1"\ntier = "leaf"\n[kafka]\n{server}[topics]\nprefix = "{prefix}"\npartitions = 1\n'
        f"[link]\nbudget_bytes_per_s = 64000\n[link.region]\n{server}"
    )
    config = load_config(str(path))
    for topology in (Topology(config), region_view(config)):
        create_topics(topology, Clients(kafka, "test"))
    return path, config


def orders(config: SiteConfig, kafka: Kafka) -> list[LinkOrder]:
    topic = Topology(config).topic("link.orders")
    return [LinkOrder.from_bytes(message.value()) for message in to_end(Clients(kafka, "test"), [(topic.name, 0)])]


def test_a_link_that_never_ran_and_orders_that_wait_for_it(
    headwater: Run, site: tuple[Path, SiteConfig], kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = site
    monkeypatch.setattr("infra.cli.link.CONFIRM_S", 1.0)
    ran = headwater("link", "status", "-c", path)
    assert ran.code == 1
    assert "the link of leaf-1 has never run: `headwater run leaf` starts it" in ran.out
    ran = headwater("link", "pause", "-c", path, "--lane", "escalations", "--lane", "verdicts", "--reason", "roaming")
    assert ran.code == 0
    assert "the order is kept: the link of leaf-1 pauses (escalations, verdicts) when it runs" in ran.out
    headwater("link", "pause", "-c", path, "--lane", "alerts")
    headwater("link", "resume", "-c", path, "--lane", "verdicts")
    assert [(order.paused, set(order.lanes), order.reason) for order in orders(config, kafka)] == [
        (True, {"escalations", "verdicts"}, "roaming"),
        (True, {"alerts", "escalations", "verdicts"}, None),
        (True, {"alerts", "escalations"}, None),
    ]
    ran = headwater("link", "resume", "-c", path, "--json")
    assert msgspec.json.decode(ran.out)["heard"] is False
    assert orders(config, kafka)[-1].paused is False


def test_a_link_that_runs(headwater: Run, site: tuple[Path, SiteConfig], eventually: Callable[..., None]) -> None:
    path, config = site
    link = Link(config)
    link.start()
    try:
        eventually(lambda: headwater("link", "status", "-c", path).code == 0, timeout_s=60, every_s=0.5)
        ran = headwater("link", "status", "-c", path)
        assert "leaf-1 → region: the region answers since" in ran.out
        assert "of 64.0 KB/s" in ran.out
        assert "↑ escalations.alerts" in ran.out
        assert "↓ region.verdicts" in ran.out
        ran = headwater("link", "pause", "-c", path, "--reason", "maintenance")
        assert ran.out == "the link of leaf-1 pauses\n"
        ran = headwater("link", "status", "-c", path)
        assert "paused (all lanes) by" in ran.out
        assert ": maintenance" in ran.out
        told = msgspec.json.decode(headwater("link", "status", "-c", path, "--json").out)
        assert (told["running"], told["breaker"], told["paused"], told["order"]["paused"]) == (True, "closed", True, True)
        assert {lane["topic"] for lane in told["lanes"]} >= {"alerts", "verdicts", "control"}
        assert headwater("link", "resume", "-c", path).out == "the link of leaf-1 goes on\n"
    finally:
        link.stop()


def test_wrong_lanes_and_sites_without_a_link(headwater: Run, site: tuple[Path, SiteConfig], tmp_path: Path) -> None:
    path, _ = site
    ran = headwater("link", "pause", "-c", path, "--lane", "frames")
    assert ran.code == 1
    assert "--lane 'frames' is no lane of the link: expected alerts," in ran.err
    alone = tmp_path / "alone.toml"
    alone.write_text('name = "leaf-2"\ntier = "leaf"\n')
    assert "has no [link]: this leaf has no region" in headwater("link", "status", "-c", alone).err
    far = tmp_path / "region.toml"
    far.write_text('name = "region-1"\ntier = "region"\n[region]\nsites = ["leaf-1"]\n')
    assert "the link runs at a leaf" in headwater("link", "status", "-c", far).err


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (64_000, "64.0 KB"), (5e6, "5.0 MB"), (7.5e12, "7500.0 GB")]
)
def test_sizes(count: float, said: str) -> None:
    assert infra.cli.link._size(count) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0.4 s"), (42, "42 s"), (600, "10 min"), (9000, "2.5 h"), (400_000, "4.6 days")])
def test_durations(seconds: float, said: str) -> None:
    assert infra.cli.link._duration(seconds) == said
