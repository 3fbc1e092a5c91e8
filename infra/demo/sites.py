"""The two sites of the demo as configuration files: what a user would write, with ports that are free on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from infra.kafka.ports import free_port

LEAF, REGION = "demo-leaf", "demo-region"
DEADLINE_MS = 5_000
AUDIT_RATE = 0.05  # of the frames, as far as half of the budgets allows: a demo is short
REGION_SIZES = (224, 320, 416, 512)

# Where people stand in the pedestrian square of the demo video, in shares of the picture; any other video has people somewhere too.
RULES: list[dict[str, Any]] = [
    {"name": "person", "label": "person", "min_score": 0.5, "cooldown_s": 2.0},
    {"name": "left-half", "label": "person", "min_score": 0.5, "cooldown_s": 3.0, "zone": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]},
    {"name": "loitering", "label": "person", "min_score": 0.45, "cooldown_s": 5.0, "min_duration_s": 1.0,
     "zone": [[0.5, 0.3], [1, 0.3], [1, 1], [0.5, 1]]},
]  # fmt: skip


def leaf_site(
    folder: Path, *, kafka: str, region: str, inferences_per_s: float, budget_bytes_per_s: int, link_bytes_per_s: int = 0
) -> tuple[Path, dict[str, int]]:
    """Write the leaf's file; returns it and the port of each role's metrics. `budget_bytes_per_s` is that of evidence, `link_bytes_per_s`
    that of all that crosses the link (0: none)."""
    ports = _ports("agent", "resolver", "link")
    site = {
        "name": LEAF,
        "tier": "leaf",
        "data_dir": str(folder / LEAF),
        "kafka": {"bootstrap_servers": kafka},
        "engine": {"workers": 2},
        "rules": RULES,
        "policy": {
            "budget_bytes_per_s": budget_bytes_per_s,
            "inferences_per_s": inferences_per_s,
            "deadline_ms": DEADLINE_MS,
        },
        "audit": {"rate": AUDIT_RATE},
        "link": {"region": {"bootstrap_servers": region}, "region_name": REGION, "budget_bytes_per_s": link_bytes_per_s},
        "topics": _TOPICS,
        "metrics": {"ports": ports},
    }
    return _write(folder / "leaf.toml", site), ports


def region_site(folder: Path, *, kafka: str, inferences_per_s: float) -> tuple[Path, dict[str, int]]:
    """Write the region's file; returns it and the port of each role's metrics."""
    ports = _ports("agent", "resolver")
    site = {
        "name": REGION,
        "tier": "region",
        "data_dir": str(folder / REGION),
        "kafka": {"bootstrap_servers": kafka},
        "engine": {"workers": 1},
        "detector": {"sizes": list(REGION_SIZES), "quantized": False},
        "region": {"sites": [LEAF], "inferences_per_s": inferences_per_s},
        "topics": _TOPICS,
        "metrics": {"ports": ports},
    }
    return _write(folder / "region.toml", site), ports


_TOPICS = {"partitions": 4, "frames_retention_s": 300, "frames_retention_bytes": 128 << 20, "outbox_retention_bytes": 64 << 20}


def _ports(*roles: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for role in roles:
        found[role] = free_port(taken=frozenset(found.values()))
    return found


def _write(path: Path, site: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(site), encoding="utf-8")
    return path
