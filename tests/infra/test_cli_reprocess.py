"""`headwater reprocess` beside a running site: what would change is what changes, alerts are not raised anew, and doing it twice changes
nothing. What is true of a frame is what the models say of it when they are asked directly."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents.inference.detector import load
from agents.reprocess import Yielding, paced
from infra import assets
from infra.assets.models import ready_models, video_frames
from schemas.config import Detector, Engine, Kafka
from streams.lag import Lag

LIMIT_S = 60.0
RULES = [{"name": "person", "label": "person", "min_score": 0.5, "cooldown_s": 3600.0}]


@pytest.fixture(scope="module")
def rig() -> ModuleType:
    """The sites and readers of the agents' tests."""
    path = Path(__file__).parents[1] / "agents" / "conftest.py"
    spec = importlib.util.spec_from_file_location("agents_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(rig: ModuleType, tmp_path: Path, kafka: Kafka, prefix: str) -> Iterator[Any]:
    made = rig.Site(tmp_path, kafka, prefix, ingress={"max_age_ms": 60_000}, rules=RULES)
    yield made
    made.end()


@pytest.fixture(scope="module")
def street() -> list[bytes]:
    import cv2

    (video,) = assets.fetch(assets.VIDEO)
    return [bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]) for frame in video_frames(Path(video), 8)]


def objects(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {result["id"]: json.loads(result["detections"]) for result in results}


def reprocess(site: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process: it lowers its own priority."""
    command = [sys.executable, "-m", "infra.cli", "reprocess", "-c", str(site.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S * 2)


def told(site: Any, *arguments: str) -> dict[str, Any]:
    ran = reprocess(site, "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_range_is_judged_again_beside_the_running_site(rig: ModuleType, site: Any, street: list[bytes]) -> None:
    larger = Detector(sizes=(320,))
    detector = load(larger, Engine(), ready_models([larger]))
    truth = {jpeg: json.loads(detector.look(jpeg).detections.to_json()) for jpeg in street}

    def picture_of(record: str) -> bytes:
        return street[int(record.rsplit("/", 1)[1]) % len(street)]

    reader = rig.Reader(site, "verdicts", "results", "alerts", "frames.dlq")
    camera = rig.Camera(site, street)
    agent, resolver = site.start("agent"), site.start("resolver")
    camera.shoot(8)
    camera.put("cam-1", b"<html>no picture</html>")
    camera.flush()
    reader.until(lambda: set(camera.manifest) <= reader.ids("results") and reader.records["alerts"], "the site has judged all")
    before = objects(reader.latest("results"))

    ask = ("--from", "10m", "--size", "320", "--rate", "1000")
    dry = told(site, *ask, "--dry-run")
    assert (dry["model"], dry["model_digest"], dry["generation"], dry["dry_run"]) == (detector.name, detector.digest, 1, True)
    assert (dry["total"]["frames"], dry["total"]["unreadable"], dry["total"]["alerts"]) == (17, 1, 0)
    counts = Counter(len(before[record]) == len(truth[picture_of(record)]) for record in camera.manifest)
    assert dry["total"]["changed"] >= counts[False] > 0  # another number of objects is another answer
    assert dry["total"]["changed"] + dry["total"]["same"] == 16
    assert dry["total"]["before"] == sum(len(found) for found in before.values())
    assert dry["total"]["after"] == sum(len(truth[picture_of(record)]) for record in camera.manifest)
    assert {source: told["frames"] for source, told in dry["sources"].items()} == {"cam-1": 8, "cam-2": 8, "?": 1}

    alerts = reader.ids("alerts")
    one = told(site, *ask, "--source", "cam-1")
    assert one["total"] == {**dry["sources"]["cam-1"]}
    mine = {record for record in camera.manifest if record.startswith("cam-1/")}

    def replaced(records: set[str]) -> bool:
        return records <= {result["id"] for result in reader.values("results") if result["generation"] == 1}

    reader.until(lambda: replaced(mine), "its results hold")
    for result in reader.latest("results"):
        wanted = truth[picture_of(result["id"])] if result["id"] in mine else before[result["id"]]
        assert json.loads(result["detections"]) == wanted  # the frames of the other source were not touched
    fresh = set(camera.shoot(2))  # the live path goes on as before
    reader.until(lambda: fresh <= reader.ids("results"), "live frames are judged")

    rest = reprocess(site, *ask)  # all of it, with what is new
    assert rest.returncode == 0, rest.stderr
    assert "nanodet-g 320 int8 (generation 1)" in rest.stdout
    reader.until(lambda: replaced(set(camera.manifest)), "the rest holds too")
    again = told(site, *ask)
    assert (again["total"]["done"], again["total"]["changed"], again["total"]["same"], again["total"]["new"]) == (20, 0, 0, 0)
    assert (agent.poll(), resolver.poll()) == (None, None)
    for verdict in reader.values("verdicts"):
        if verdict["generation"] == 1:
            assert (verdict["model_digest"], verdict["note"], verdict["rank"]) == (detector.digest, "reprocessed", 10)
    assert reader.ids("alerts") == alerts  # none anew
    reader.close()


def test_alerts_are_raised_if_asked_for_and_marked_as_late(rig: ModuleType, site: Any, street: list[bytes]) -> None:
    reader = rig.Reader(site, "alerts", "verdicts", "alerts.evidence")
    camera = rig.Camera(site, street, "cam-1")
    camera.shoot(4)
    found = told(site, "--from", "beginning", "--alerts", "--rate", "1000", "--max-lag", "0")  # nobody has judged these before
    assert (found["total"]["new"], found["total"]["alerts"]) == (4, 1)
    reader.until(lambda: reader.records["alerts"] and len(reader.records["verdicts"]) == 4 and reader.records["alerts.evidence"], "written")
    (alert,) = reader.values("alerts")
    assert alert["record"].startswith("cam-1/")
    assert alert["state"] == "raised"
    assert told(site, "--from", "beginning", "--alerts", "--rate", "1000")["total"]["alerts"] <= 1
    reader.until(lambda: True, "")
    assert reader.ids("alerts") == {alert["id"]}  # the same event
    reader.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "10m", "--source", "no/slash"), "source"),
        (("--from", "1m", "--to", "2m"), "is not before --to"),
        (("--from", "end"), "--from takes beginning, an age such as 10m, or a time"),
        ((), "Missing option '--from'"),
    ],
)
def test_what_makes_no_sense_is_refused(site: Any, headwater: Any, arguments: tuple[str, ...], said: str) -> None:
    ran = headwater("reprocess", "-c", site.path, *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_a_model_that_is_not_there_is_named(site: Any) -> None:
    ran = reprocess(site, "--from", "10m", "--model", "nowhere.onnx", "--family", "yolov8")
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith("headwater: the model nowhere.onnx cannot be read")


def test_it_waits_while_the_leaf_is_behind_but_not_for_one_that_does_not_run() -> None:
    rule = Yielding(10, patience_s=30.0)
    assert rule.may_go(Lag(10, 0), 0.0)
    assert not any(rule.may_go(Lag(11 + n, n), float(n)) for n in range(1, 100))  # it works, and is behind
    assert not rule.may_go(Lag(200, 99), 129.0)
    assert rule.may_go(Lag(200, 99), 130.0)


def test_the_pace_is_kept_and_a_pause_is_not_made_up_for() -> None:
    now, waits = 0.0, []

    def wait(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    items = paced(iter([None] * 40), 10.0, wait, lambda: now)  # type: ignore[list-item]
    for _ in range(10):
        next(items)
    assert now == pytest.approx(0.9)
    now += 100.0
    for _ in range(30):
        next(items)
    assert now - 100.9 >= 1.9 - 1e-9
