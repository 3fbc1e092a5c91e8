"""What must not leave a site is not in the pixels that are encoded; the rest of the picture stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.evidence.frame import encode_frame, redacted
from agents.cascade.evidence.redaction import NotLookedAt, Redaction, cover, watch_of
from agents.inference.detector import Detector, Watch, load
from agents.models.labels import InvalidLabels
from agents.steps import rungs_of
from infra.assets.models import ready_models
from schemas.config import Detector as Settings
from schemas.config import Engine, InvalidConfig, Redact, parse
from schemas.detections import Detection, Detections
from schemas.messages import Alert, Verdict
from schemas.rules import Rule

LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
TRIANGLE = ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9))


def noise(width: int = 96, height: int = 64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def seen(label: str = "person", score: float = 0.9, box: tuple[float, float, float, float] = (0.25, 0.25, 0.5, 0.75)) -> Detection:
    return Detection(label, score, *box)


def changed(before: Any, after: Any) -> Any:
    """Which pixels were changed: noise stays nowhere by chance."""
    return (before != after).any(axis=2)


# ---- where


@given(st.data(), st.sampled_from(["blur", "mask"]), st.integers(8, 120), st.integers(8, 120))
@settings(deadline=None)
def test_an_object_is_covered_with_its_margin_and_nothing_else_is(data: st.DataObject, how: Any, width: int, height: int) -> None:
    x0, x1 = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    y0, y1 = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    margin = data.draw(st.floats(0, 0.5))
    before = noise(width, height) | 1  # nothing is black
    found = Redaction([Redact(label="person", how=how, margin=margin)]).areas("cam", [seen(box=(x0, y0, x1, y1))])
    after = cover(before.copy(), found)
    touched = changed(before, after)
    wide, high = margin * (x1 - x0), margin * (y1 - y0)
    inside = np.zeros((height, width), bool)
    left, right = np.clip([(x0 - wide) * width, (x1 + wide) * width], 0, width)
    top, bottom = np.clip([(y0 - high) * height, (y1 + high) * height], 0, height)
    inside[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    allowed = np.zeros((height, width), bool)
    allowed[max(0, int(top) - 1) : int(np.ceil(bottom)) + 2, max(0, int(left) - 1) : int(np.ceil(right)) + 2] = True
    assert not touched[~allowed].any()
    if how == "mask":
        assert (after[inside] == 0).all()


def test_a_zone_is_covered_whatever_is_in_it() -> None:
    before = noise(200, 100) | 1
    after = cover(before.copy(), Redaction([Redact(zone=TRIANGLE, how="mask")]).areas("cam", None))
    rows, columns = np.mgrid[0:100, 0:200]
    x, y = (columns + 0.5) / 200, (rows + 0.5) / 100
    within = (x > 0.11) & (y > 0.11) & (x + y < 0.98)
    outside = (x < 0.08) | (y < 0.08) | (x + y > 1.04)
    assert (after[within] == 0).all()
    assert (after[outside] == before[outside]).all()


def test_a_class_in_a_zone_is_covered_where_it_touches_it_and_as_a_whole() -> None:
    rules = Redaction([Redact(zone=LEFT, label="person", how="mask", margin=0)])
    inside, across, outside = (0.1, 0.2, 0.3, 0.4), (0.45, 0.2, 0.7, 0.4), (0.6, 0.2, 0.8, 0.4)
    assert [area.box for area in rules.areas("cam", [seen(box=box) for box in (inside, across, outside)])] == [inside, across]
    assert rules.areas("cam", [seen("car", box=inside)]) == ()


def test_sources_and_scores_decide_too() -> None:
    rules = Redaction([Redact(label="person", sources=("a",), min_score=0.2), Redact(label="car", min_score=0.05)])
    spotted = [seen("person", 0.2), seen("person", 0.19), seen("car", 0.05), seen("dog")]
    assert len(rules.areas("a", spotted)) == 2
    assert len(rules.areas("b", spotted)) == 1
    assert Redaction([]).areas("a", None) == ()
    assert not Redaction([])


def test_what_nobody_has_looked_at_does_not_leave_where_a_class_is_covered() -> None:
    rules = Redaction([Redact(label="person", sources=("a",)), Redact(zone=LEFT)])
    assert [rules.needs_look(source) for source in ("a", "b")] == [True, False]
    with pytest.raises(NotLookedAt, match="'person' is covered in pictures of a"):
        rules.areas("a", None)
    assert len(rules.areas("a", [])) == len(rules.areas("b", None)) == 1


# ---- how well


@pytest.mark.parametrize(("size", "patch"), [((6, 4), 3), ((20, 50), 6), ((96, 64), 12), ((640, 480), 80)])
def test_a_blur_leaves_nothing_finer_than_its_patches(size: tuple[int, int], patch: int) -> None:
    """Two pictures that differ in stripes of a pixel become the same, but for the stripe that a patch cuts in two."""
    width, height = size
    areas = Redaction([Redact(zone=((0, 0), (1, 0), (1, 1), (0, 1)))]).areas("cam", None)
    stripes = np.broadcast_to(((np.arange(width) % 2) * 200).astype(np.uint8)[None, :, None], (height, width, 3))
    one, other = (cover(each.copy(), areas).astype(int) for each in (stripes, 200 - stripes))
    assert np.abs(one - other).max() <= 200 / patch + 1
    assert cover(noise(width, height), areas).std() < noise(width, height).std() / 2


def test_it_is_done_before_anything_is_encoded(street: list[bytes]) -> None:
    areas = Redaction([Redact(zone=LEFT, how="mask")]).areas("cam", None)
    for made, side in ((encode_frame(street[0], side=320, quality=90, areas=areas), 320), (redacted(street[0], areas), 768)):
        image = cv2.imdecode(np.frombuffer(made, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape[1] == side
        assert image[:, : side // 2 - 8].max() < 12
        assert image[:, side // 2 + 8 :].mean() > 40
    assert redacted(street[0], ()) is street[0]


# ---- what the detector tells of


@pytest.fixture(scope="module")
def watching() -> Detector:
    settings_ = Settings()
    return load(settings_, Engine(), ready_models([settings_]), Watch(frozenset({"person"}), 0.05))


def test_faint_objects_are_told_of_and_change_no_answer(nanodet: Detector, watching: Detector, street: list[bytes]) -> None:
    assert watching.digest == nanodet.digest
    for jpeg in street:
        plain, look = nanodet.look(jpeg), watching.look(jpeg)
        assert plain.watched is None
        assert look.detections == plain.detections
        assert look.watched is not None
        assert {each.label for each in look.watched} == {"person"}
        assert min(each.score for each in look.watched) >= 0.05
        people = [each for each in plain.detections if each.label == "person"]
        assert len(look.watched) > len(people), "more than what is reported"
        for person in people:
            assert max(person.iou(each) for each in look.watched) > 0.99


def test_a_class_that_no_model_knows_is_an_error_at_start(tools: ModuleType, tmp_path: Path) -> None:
    site = tools.leaf_site(redact=(Redact(label="persons"),))
    with pytest.raises(InvalidLabels, match="'persons', which nanodet-g 224 int8 does not know"):
        rungs_of(site, tmp_path)
    settings_ = Settings()
    with pytest.raises(InvalidLabels, match="'persons'"):
        load(settings_, Engine(), ready_models([settings_]), watch_of(site.redact))
    (tmp_path / "labels.txt").write_text("persons\n")
    own = Settings(model="other.onnx", labels=str(tmp_path / "labels.txt"), degrade=False)
    assert rungs_of(tools.leaf_site(redact=(Redact(label="persons"),), detector=own), tmp_path)


def test_what_is_watched_for_is_what_the_rules_name() -> None:
    assert watch_of([]) is None
    assert watch_of([Redact(zone=LEFT)]) is None
    assert watch_of([Redact(label="a", min_score=0.1), Redact(label="b", min_score=0.3), Redact(zone=LEFT)]) == Watch(frozenset("ab"), 0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[redact]]\nhow = 'mask'", "$.redact[0] has neither zone nor label"),
        ("[[redact]]\nzone = [[0, 0], [1, 1]]", "$.redact[0].zone is"),
        ("[[redact]]\nlabel = 'a'\nhow = 'smear'", "$.redact[0].how is 'smear'"),
        ("[evidence]\nside = 20", "$.evidence.side is 20"),
        ("[evidence]\nform = 'clip'\nside = 4096", "$.evidence.side is 4096"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(f'name = "a"\ntier = "leaf"\n{text}', {})
    assert said in str(caught.value)


# ---- at the leaf


def test_pictures_of_alerts_and_evidence_are_covered_at_the_leaf(
    tools: ModuleType, bench: Callable[..., Any], watching: Detector, street: list[bytes]
) -> None:
    desk = bench(watching, rules=(Rule(name="r", min_score=0.4, cooldown_s=0.0),), redact=(Redact(label="person", how="mask"),))
    frame = tools.frame("cam", 0, jpeg=street[0])
    (items,) = desk.run([desk.record(frame)])
    (verdict,) = tools.values(items, "verdicts", Verdict)
    people = [each for each in verdict.detections if each.label == "person"]
    assert people
    bases = [output.topic.base for output in tools.outputs_of(items)]
    assert bases == ["alerts", "verdicts", "alerts.evidence", "escalations.alerts"]
    for output in tools.outputs_of(items)[2:]:
        image: Any = cv2.imdecode(np.frombuffer(output.value, np.uint8), cv2.IMREAD_COLOR)
        height, width, _ = image.shape
        for each in people:
            part = image[round(each.y0 * height) : round(each.y1 * height), round(each.x0 * width) : round(each.x1 * width)]
            assert part.mean() < 6, output.topic.base
        assert image.mean() > 40
    (alert,) = tools.values(items, "alerts", Alert)
    assert tools.outputs_of(items)[2].key == alert.id


def test_where_nobody_has_looked_no_picture_leaves(tools: ModuleType, bench: Callable[..., Any]) -> None:
    desk = bench(rules=(Rule(name="r", min_score=0.4, cooldown_s=0.0),), redact=(Redact(label="person"),))  # its detector watches nothing
    frame = tools.frame("cam", 0)
    desk.detector.seen[frame.jpeg] = Detections([tools.person()])
    assert desk.questions.unjudged("cam") is None

    async def drive() -> tuple[list[Any], Exception | None]:
        items: list[Any] = []
        try:
            async for item in desk.leaf.work(desk.topic, 0, [desk.record(frame)]):
                items.append(item)
        except Exception as error:  # noqa: BLE001 - what was raised is the answer
            return items, error
        return items, None

    before = desk.budgets.bytes.level(), desk.budgets.inferences.level()
    items, error = asyncio.run(asyncio.wait_for(drive(), tools.LIMIT_S))
    assert isinstance(error, NotLookedAt)
    assert [output.topic.base for output in tools.outputs_of(items)] == ["alerts", "verdicts"]
    assert (desk.budgets.bytes.level(), desk.budgets.inferences.level()) == before
    plain = bench(redact=(Redact(zone=LEFT),))
    assert plain.questions.unjudged("cam") is not None
