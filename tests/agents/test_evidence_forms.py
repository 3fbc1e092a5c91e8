"""Which form a look has, and how good it is: by the budgets, and by what was measured on its source."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cascade.evidence.forms import QUALITIES, RATES, STREAMS, Forms
from schemas.config import Evidence

PLENTY = 1e9


def forms(deadline_ms: int = 10_000, *, clips: bool = True, **evidence: object) -> Forms:
    return Forms(Evidence(**evidence), deadline_ms=deadline_ms, clips=clips)


# ---- pictures


def test_the_best_quality_that_a_look_may_cost() -> None:
    rules = forms(form="frame")
    sizes = {20: 10_000, 30: 14_000, 40: 17_000, 50: 20_000}
    for _ in range(200):
        for quality, size in sizes.items():
            rules.sent_picture("cam", quality, size)
    chosen = {allowed: rules.choose("cam", 0.0, allowed) for allowed in (5_000, 10_100, 13_900, 14_100, 17_100, 19_900, 20_100, 10**9)}
    assert {allowed: form.setting for allowed, form in chosen.items()} == {
        5_000: 20, 10_100: 20, 13_900: 20, 14_100: 30, 17_100: 40, 19_900: 40, 20_100: 50, 10**9: 50,
    }  # fmt: skip
    assert chosen[14_100].size == pytest.approx(14_000, rel=0.01)
    assert not any(form.clip for form in chosen.values())


def test_each_source_has_sizes_of_its_own_and_one_measurement_tells_of_the_other_qualities() -> None:
    rules = forms(form="frame")
    for _ in range(60):
        rules.sent_picture("quiet", 30, 8_000)
        rules.sent_picture("busy", 30, 40_000)
    assert [rules.choose(name, 0.0, 20_000).setting for name in ("quiet", "busy")] == [50, 20]


def test_what_the_file_sets_holds_whatever_it_costs() -> None:
    assert forms(form="frame", quality=77).choose("cam", 0.0, 1.0).setting == 77
    fixed = forms(form="clip", crf=23).choose("cam", 0.0, 1.0)
    assert (fixed.clip, fixed.setting) == (True, 23)


# ---- clips


@given(st.floats(100, 1e6), st.lists(st.floats(0, 5), min_size=1, max_size=80))
@settings(deadline=None)
def test_a_form_that_is_set_is_kept_and_settings_are_from_their_lists(allowed: float, pauses: list[float]) -> None:
    now = 0.0
    frame, clip, auto = forms(form="frame"), forms(form="clip"), forms(form="auto")
    for pause in pauses:
        now += pause
        assert frame.choose("cam", now, allowed)[:2] == (False, frame.choose("cam", now, allowed).setting)
        assert clip.choose("cam", now, allowed).clip
        assert not clip.choose("cam", now, allowed, at_once=True).clip
        found = auto.choose("cam", now, allowed)
        assert found.setting in (RATES if found.clip else QUALITIES)
        assert found.size > 0


def test_clips_where_many_frames_of_a_source_are_asked_about_and_pictures_where_few_are() -> None:
    rules = forms(clip_s=2.0)
    few = [rules.choose("few", second, PLENTY).clip for second in range(30)]  # one a second: two within a clip's time
    many = [rules.choose("many", n / 10, PLENTY).clip for n in range(100)]
    assert not any(few)
    assert all(many[5:])
    assert not many[0]
    assert not rules.choose("many", 60.0, PLENTY).clip, "the rate has fallen"


def test_no_clip_that_would_take_half_of_the_time_for_an_answer() -> None:
    for deadline_ms, expected in ((3_999, False), (4_000, True)):
        rules = forms(deadline_ms, clip_s=2.0)
        assert [rules.choose("cam", n / 10, PLENTY).clip for n in range(50)][-1] is expected
    assert forms(1_000, form="clip", clip_s=2.0).choose("cam", 0.0, PLENTY).clip, "who sets clips wants them"


def test_without_an_encoder_there_are_pictures_only() -> None:
    rules = forms(clips=False)
    assert not any(rules.choose("cam", n / 100, PLENTY).clip for n in range(100))


def test_a_restless_scene_whose_clips_save_nothing_is_sent_as_pictures_and_tried_again_later() -> None:
    rules, now = forms(), 0.0

    def clips_of(seconds: int, later: int) -> int:
        """Ten looks a second; how many went into clips, whose later frames have that size."""
        nonlocal now
        count = 0
        for _ in range(10 * seconds):
            now += 0.1
            form = rules.choose("cam", now, PLENTY)
            count += form.clip
            if form.clip and count % 20 == 0:
                rules.sent_clip("cam", form.setting, [25_000, *[later] * 19])
            elif not form.clip:
                rules.sent_picture("cam", form.setting, 24_000)
        return count

    assert clips_of(60, later=2_000) > 550
    assert clips_of(60, later=24_000) < 300
    assert clips_of(60, later=2_000) > 300


@given(st.lists(st.integers(500, 60_000), min_size=1, max_size=40), st.sampled_from(RATES))
def test_what_clips_cost_is_learned_from_them(sizes: list[int], crf: int) -> None:
    rules = forms(form="clip", crf=crf)
    for _ in range(300):
        rules.sent_clip("cam", crf, sizes)
    for n in range(len(sizes)):
        found = rules.choose("cam", n / 1000, PLENTY)
    later = sum(sizes[1:]) / max(1, len(sizes) - 1)
    n = min(len(sizes), 30)
    if len(sizes) > 1:
        assert found.size == pytest.approx((sizes[0] + (n - 1) * later) / n, rel=0.5)


def test_coarser_where_less_is_allowed() -> None:
    settings_by_allowed = []
    for allowed in (500, 5_000, 1e6):
        rules = forms(form="clip")
        found = [rules.choose("cam", n / 30, allowed) for n in range(30)][-1]
        settings_by_allowed.append(found.setting)
    assert settings_by_allowed == sorted(settings_by_allowed, reverse=True)
    assert settings_by_allowed[0] == RATES[0]
    assert settings_by_allowed[-1] == RATES[-1]


def test_what_is_remembered_has_a_bound() -> None:
    rules = forms()
    for number in range(STREAMS + 50):
        rules.choose(number, 0.0, PLENTY)
    assert len(rules._streams) == STREAMS
