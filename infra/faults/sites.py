"""The sites under faults as configuration files, as a user would write them: a leaf, its region, and what is played to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from agents.inference.detector import Detector, load
from agents.models.spots import FAMILY, LABELS, SIDE, write_spots
from infra import assets
from infra.assets.models import models_folder, ready_models
from infra.faults.pictures import write_spots_pictures, write_video_pictures
from infra.kafka.ports import free_port
from schemas.config import SiteConfig, parse

LEAF, REGION = "faulty-leaf", "faulty-region"
DEADLINE_MS = 8_000
PARTITIONS = 4


class Workload(msgspec.Struct, frozen=True):
    """What is played: a folder of pictures, the detectors of both tiers, the rules, and whether the frames are real."""

    name: str
    pictures: Path
    leaf: dict[str, Any]
    region: dict[str, Any]
    rules: list[dict[str, Any]]
    looks_per_s: float
    real: bool


def spots_workload(folder: Path, count: int = 512) -> Workload:
    """Tiny synthetic frames through a tiny real network: for volume."""
    model, labels = write_spots(folder / "model")
    detector = {"model": str(model), "labels": str(labels), "family": FAMILY, "sizes": [SIDE], "min_score": 0.5}
    pictures = write_spots_pictures(folder / "spots", count)
    rules = [
        {"name": f"{label}-there", "label": label, "min_score": 0.8, "cooldown_s": cooldown_s}
        for label, cooldown_s in zip(LABELS[:2], (1.0, 3.0), strict=True)
    ]
    # the region reads its detections otherwise, so that its answers can be told from the leaf's
    return Workload("spots", pictures, detector, {**detector, "min_score": 0.4}, rules, 20.0, False)


def street_workload(folder: Path, count: int = 120) -> Workload:
    """Real frames of the demo's video through the real detectors."""
    (video,) = assets.fetch(assets.VIDEO)
    pictures = write_video_pictures(folder / "street", video, count)
    rules = [{"name": "person", "label": "person", "min_score": 0.5, "cooldown_s": 2.0}]
    return Workload("street", pictures, {}, {"sizes": [320], "quantized": False}, rules, 2.0, True)


def leaf_site(
    folder: Path,
    workload: Workload,
    *,
    name: str,
    kafka: str,
    region: str,
    file: str = "leaf.toml",
    topics: dict[str, Any] | None = None,
    ingress: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    disk: dict[str, Any] | None = None,
) -> tuple[Path, dict[str, int]]:
    """Write the leaf's file; returns it and the port of each role's metrics. Nothing is stale: what waited through a fault is answered."""
    ports = _ports("agent", "resolver", "link", "producer")
    site = {
        "name": name,
        "tier": "leaf",
        "data_dir": str(folder / file.removesuffix(".toml")),
        "kafka": {"bootstrap_servers": kafka},
        # no smaller model and no patience lost: the judge holds every answer against this one detector's
        "engine": {"workers": 2, "slow_ms": 600_000, **(engine or {})},
        "detector": {**workload.leaf, "degrade": False, "compute": 1.0},
        "rules": workload.rules,
        "ingress": {"max_age_ms": 86_400_000, "max_frame_bytes": 1 << 20, **(ingress or {})},
        "policy": {
            "budget_bytes_per_s": 256 << 10,
            "inferences_per_s": workload.looks_per_s,
            "deadline_ms": DEADLINE_MS,
            **(policy or {}),
        },
        "link": {"region": {"bootstrap_servers": region}, "region_name": REGION},
        "disk": disk or {},
        "topics": {"partitions": PARTITIONS, **(topics or _BOUNDS)},
        "metrics": {"ports": ports},
    }
    return _write(folder / file, site), ports


def region_site(
    folder: Path, workload: Workload, *, sites: list[str], kafka: str, topics: dict[str, Any] | None = None
) -> tuple[Path, dict[str, int]]:
    """Write the region's file; returns it and the port of each role's metrics."""
    ports = _ports("agent", "resolver")
    site = {
        "name": REGION,
        "tier": "region",
        "data_dir": str(folder / "region"),
        "kafka": {"bootstrap_servers": kafka},
        "engine": {"workers": 1},
        "detector": workload.region,
        "region": {"sites": sites, "inferences_per_s": workload.looks_per_s},
        "topics": {"partitions": PARTITIONS, **(topics or _BOUNDS)},
        "metrics": {"ports": ports},
    }
    return _write(folder / "region.toml", site), ports


_BOUNDS = {"frames_retention_s": 6 * 3600, "frames_retention_bytes": 256 << 20, "outbox_retention_bytes": 512 << 20}


def detector_of(site: SiteConfig) -> Detector:
    """A site's detector, called directly: what a run without faults would answer."""
    return load(site.detector, site.engine, ready_models([site.detector]) if not Path(site.detector.model).exists() else models_folder())


def read_site(path: Path) -> SiteConfig:
    return parse(path.read_text(encoding="utf-8"), {}, where=str(path))


def _ports(*roles: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for role in roles:
        found[role] = free_port(taken=frozenset(found.values()))
    return found


def _write(path: Path, site: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(site), encoding="utf-8")
    return path
