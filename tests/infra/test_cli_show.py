"""`headwater show` on a real broker: an alert's story, and its picture in a file and in the terminal."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from rich.console import Console

from infra.cli.common import CommandFailed
from infra.cli.pictures import HIGHER_COLOUR, LEAF_COLOUR, ZONE_COLOUR, annotated, decoded, half_blocks
from schemas.config import Kafka, SiteConfig, Topics
from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.identity import RecordId, alert_id, new_epoch
from schemas.incidents import Incident, incident_id, incident_of, merged
from schemas.messages import Alert, AlertState, Status, Tier, Verdict
from schemas.rules import Zone
from streams import outputs
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Topology

Run = Callable[..., Any]
GREY = np.full((120, 160, 3), 128, np.uint8)
SEEN = Detections([Detection("person", 0.62, 0.25, 0.25, 0.5, 0.75)])
ZONE = Zone([(0, 0), (0.9, 0), (0.9, 0.9), (0, 0.9)])


@pytest.fixture
def site(kafka: Kafka, prefix: str, tmp_path: Path) -> Path:
    topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix)))
    create_topics(topology, Clients(kafka, "test"))
    path = tmp_path / "leaf.toml"
    path.write_text(
        f'name = "leaf-1"\ntier = "leaf"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n[topics]\nprefix = "{prefix}"\n'
    )
    return path


@pytest.fixture
def alert(site: Path, kafka: Kafka, prefix: str) -> Alert:
    """An alert that the region confirmed, with its picture."""
    topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix)))
    record, taken = RecordId("cam-1", new_epoch(), 3), dt.datetime.now(dt.UTC)
    raised = Alert(
        id=alert_id("gate", str(record)),
        rule="gate",
        source="cam-1",
        site="leaf-1",
        record=str(record),
        captured_at=taken,
        state=AlertState.RAISED,
        version=0,
        label="person",
        min_score=0.5,
        zone=ZONE,
        seen=SEEN,
        score=0.62,
        held_s=1.5,
        model_digest="a" * 64,
        deadline_ms=1000,
    )
    higher = Verdict(
        id=str(record),
        source="cam-1",
        captured_at=taken,
        status=Status.FINAL,
        detections=Detections([Detection("person", 0.91, 0.3, 0.3, 0.55, 0.8)]),
        confidence=0.91,
        tier=Tier.REGION,
        site="north",
        rank=20,
        generation=0,
        model="nanodet-g.4",
        model_digest="b" * 64,
    )
    confirmed = msgspec.structs.replace(raised, state=AlertState.CONFIRMED, version=3, decided_by=Tier.REGION)
    jpeg = cv2.imencode(".jpg", GREY)[1].tobytes()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for one in (
        outputs.alert(topology.topic("alerts"), raised),
        outputs.picture(topology.topic("alerts.evidence"), raised.id, Frame(id=record, source="cam-1", captured_at=taken, jpeg=jpeg)),
        outputs.answer(topology.topic("region.verdicts"), higher),
        outputs.alert(topology.topic("alerts"), confirmed),
    ):
        producer.produce(one.topic.name, key=one.key, value=one.value, headers=one.headers, partition=one.partition)
        producer.flush(10)
    return raised


def near(image: np.ndarray[Any, Any], colour: tuple[int, int, int], least: int = 20) -> bool:
    return int((np.abs(image.astype(int) - colour).max(axis=2) < 60).sum()) >= least


def test_the_story_and_the_picture(headwater: Run, site: Path, alert: Alert, tmp_path: Path) -> None:
    picture = tmp_path / "alert.png"
    ran = headwater("show", alert.id[:14], "-c", site, "--picture", picture)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"{alert.id}  confirmed"
    assert "rule gate: person with a score of .50 or more in a zone, seen with .62 at cam-1 of site leaf-1" in lines[1]
    story = [line.split(None, 3)[3] for line in lines[3:]]
    assert [told.split()[0] for told in story] == ["raised", "region", "confirmed"]
    assert "by the leaf, after 1.5 s" in story[0]
    assert "final  1 person .91  nanodet-g.4" in story[1]
    assert story[2].endswith("by the region")
    drawn = cv2.imread(str(picture))
    assert drawn.shape == GREY.shape
    for colour in (LEAF_COLOUR, HIGHER_COLOUR, ZONE_COLOUR):
        assert near(drawn, colour), f"nothing was drawn in {colour}"


def test_programs_get_the_whole_story(headwater: Run, site: Path, alert: Alert) -> None:
    ran = headwater("show", "last", "-c", site, "--json")
    answer = msgspec.json.decode(ran.out)
    assert (answer["id"], answer["state"], answer["decided_by"]) == (alert.id, "confirmed", "region")
    assert [event["what"] for event in answer["events"]] == ["state", "verdict", "state"]
    assert answer["events"][0]["after_ms"] < answer["events"][2]["after_ms"]
    assert answer["picture"]["size_bytes"] > 100


def test_in_a_terminal_it_is_drawn(headwater: Run, site: Path, alert: Alert) -> None:
    assert "▀" not in headwater("show", "last", "-c", site).out, "a pipe gets no picture"
    assert headwater("show", "last", "-c", site, "--draw").out.count("▀") > 500


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("zz",), "begins with 'zz': `headwater tail alerts` lists the latest"),
        (("last", "--picture", "/no/such/x.jpg"), "/no/such/x.jpg cannot be written: No such file or directory"),
        (("last", "--picture", "x.doc"), "x.doc: pictures can be written as .jpg, .png or .webp, not as .doc"),
        (("last", "--region"), "has no [link]"),
    ],
)
def test_what_cannot_be_shown_is_said(headwater: Run, site: Path, alert: Alert, arguments: tuple[str, ...], told: str) -> None:
    ran = headwater("show", *arguments, "-c", site)
    assert ran.code == 1
    assert told in ran.err


def test_a_person_judges_an_alert_and_the_story_says_so(headwater: Run, site: Path, alert: Alert) -> None:
    ran = headwater("label", "alert", "last", "wrong", "--by", "anna", "-c", site)
    assert ran.code == 0, ran.err
    assert "wrong, says anna" in ran.out
    shown = headwater("show", "last", "-c", site, "--json")
    assert json.loads(shown.out)["alert"]["note"] == "wrong, says anna"
    ran = headwater("label", "alert", alert.id, "right", "--by", "ben", "-c", site, "--json")
    assert json.loads(ran.out) == {"alert": alert.id, "was": "judged", "right": True, "note": "right, says ben"}
    ran = headwater("label", "alert", "alert-none", "right", "-c", site)
    assert (ran.code, "no alert" in ran.err) == (1, True)


def test_nothing_was_raised_yet(headwater: Run, site: Path) -> None:
    ran = headwater("show", "last", "-c", site)
    assert ran.code == 1
    assert "there is no alert in" in ran.err


def test_half_blocks_hold_the_picture() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:20, :, 2] = 255  # upper half red (blue, green, red)
    text = half_blocks(image, columns=40, rows=100)
    lines = text.plain.splitlines()
    assert (len(lines), {len(line) for line in lines}) == (10, {40}), "two pixels a character keep the shape"
    console = Console(color_system="truecolor", force_terminal=True, width=80)
    with console.capture() as captured:
        console.print(text)
    first, last = captured.get().splitlines()[0], captured.get().splitlines()[9]
    assert "38;2;255;0;0" in first
    assert "38;2;0;0;0" in last
    assert len(half_blocks(image, columns=400, rows=5).plain.splitlines()) == 5


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0 no picture", b"GIF89a"])
def test_a_picture_that_is_none_is_said(data: bytes) -> None:
    with pytest.raises(CommandFailed, match="cannot be decoded"):
        decoded(data)


def test_words_beyond_the_fonts_do_no_harm() -> None:
    drawn = annotated(GREY, [(Detection("größe 猫", 0.5, 0.0, 0.0, 1.0, 1.0), LEAF_COLOUR)], Zone())
    assert near(drawn, LEAF_COLOUR)
    assert (GREY == 128).all(), "the picture itself is left as it is"


# ---- incidents


@pytest.fixture
def incidents(alert: Alert, kafka: Kafka, prefix: str) -> tuple[Incident, Incident]:
    """One that came a day late, of two alerts, and one that has become a part of it."""
    topology = Topology(SiteConfig(name="leaf-1", tier="leaf", kafka=kafka, topics=Topics(prefix=prefix)))
    late = msgspec.structs.replace(alert, late_by_s=86_400.0 * 3)
    second = msgspec.structs.replace(
        late, id=alert_id("gate", "2"), captured_at=alert.captured_at + dt.timedelta(seconds=4), state=AlertState.RETRACTED, version=2
    )
    whole = incident_of([late, second], "zone:gate")
    part = merged(msgspec.structs.replace(whole, id=incident_id(second.id)), whole.id)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for one in (outputs.incident(topology.topic("incidents"), whole), outputs.incident(topology.topic("incidents"), part)):
        producer.produce(one.topic.name, key=one.key, value=one.value, headers=one.headers, partition=one.partition)
        producer.flush(10)
    return whole, part


def test_an_incident_is_shown_with_its_witnesses_also_by_the_name_of_one_that_was_merged(
    headwater: Run, site: Path, incidents: tuple[Incident, Incident]
) -> None:
    whole, part = incidents
    for wanted in (whole.id, part.id[:20]):
        ran = headwater("show", wanted, "-c", site)
        assert ran.code == 0, ran.err
        lines = ran.out.splitlines()
        assert lines[0] == f"{whole.id}  raised  late by 3 days"
        assert "rule gate: person at zone:gate, seen by cam-1" in lines[1]
        assert "went on for 5.5 s" in lines[2]
        assert [line.split()[2] for line in lines[3:]] == ["raised", "retracted"]
        assert all(line.endswith("late by 3 days") for line in lines[3:])
    told = msgspec.json.decode(headwater("show", whole.id, "-c", site, "--json").out)
    assert (told["late"], told["alerts"], [w["state"] for w in told["witnesses"]]) == (True, 2, ["raised", "retracted"])
    ran = headwater("show", "incident-none", "-c", site)
    assert (ran.code, "headwater tail incidents" in ran.err) == (1, True)
    assert headwater("show", whole.id, "-c", site, "--picture", "x.png").code == 2


def test_tail_shows_incidents_and_marks_what_is_old_news(headwater: Run, site: Path, incidents: tuple[Incident, Incident]) -> None:
    whole, part = incidents
    ran = headwater("tail", "incidents", "-c", site, "--no-follow", "--from", "beginning")
    assert ran.code == 0, ran.err
    first, second = ran.out.splitlines()
    assert "gate: person .62  2 alerts by cam-1 within 5.5 s" in first
    assert "late by 3 days" in first
    assert f"{part.id}  is now a part of {whole.id}" in second
