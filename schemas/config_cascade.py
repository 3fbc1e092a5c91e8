"""The cascade's part of a site's file: what is worth asking the region, in which form it is sent, and what never leaves the site.

Each table says itself what is wrong between its fields (`wrong`); `schemas.config` asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.records import shown
from schemas.rules import Point, Zone

_strict = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}
MAX_BYTES = 1 << 50
LEAST_SIDE = 32  # pixels
MAX_CLIP_SIDE = 2048
MAX_CLIP_FRAMES = 60  # looks in one clip: what a region works on without an answer, and what its question has room for


class Policy(msgspec.Struct, **_strict):
    """What is worth asking the region."""

    mode: Annotated[
        Literal["budgeted", "everything", "off"],
        Meta(
            description="budgeted: the frames whose look is worth most, as many as the budgets allow; everything: each frame that the "
            "budgets allow; off: the leaf decides everything alone"
        ),
    ] = "budgeted"
    value: Annotated[
        Literal["expected-gain", "uncertainty", "uniform"],
        Meta(
            description="what a look is worth, with mode = 'budgeted': expected-gain: how much looks have changed on such frames; "
            "uncertainty: how unsure the detections are; uniform: frames at even distances in time"
        ),
    ] = "expected-gain"
    teach: Annotated[bool, Meta(description="the region's answers teach the leaf, stream by stream")] = True
    budget_bytes_per_s: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_BYTES,
            description="bytes of evidence a second, over all sources of the site; less where link.budget_bytes_per_s leaves less",
        ),
    ] = 64 << 10
    burst_s: Annotated[float, Meta(gt=0, le=600, description="seconds of unspent budget that may be spent at once")] = 5.0
    inferences_per_s: Annotated[
        float, Meta(gt=0, le=1e6, description="looks a second to ask for until the region has announced its capacity")
    ] = 2.0
    deadline_ms: Annotated[
        int, Meta(ge=100, le=30 * 86_400_000, description="how long an answer of the region is waited for; then the result is 'unanswered'")
    ] = 10_000
    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400, description="how long an escalation is worth sending")] = 86_400.0
    region_away: Annotated[
        Literal["final", "wait"],
        Meta(
            description="while the region is away: final: what is unsure is answered finally, with a note; wait: it waits for an answer "
            "until deadline_ms, as always"
        ),
    ] = "final"
    away_backlog_s: Annotated[
        float,
        Meta(
            ge=0,
            le=30 * 86_400,
            description="while the region is away: seconds for which unsure frames are still kept for it; after that only frames of "
            "alerts, and those that no model here could judge",
        ),
    ] = 600.0


class Audit(msgspec.Struct, **_strict):
    """The sample that the region judges whatever the leaf thinks, so that what is measured on it is true of all frames."""

    rate: Annotated[
        float, Meta(ge=0, le=1, description="share of the frames; less where it would take more than half of a budget; 0: none")
    ] = 0.01
    salt: Annotated[
        str, Meta(min_length=1, max_length=128, description="draws the sample; the same in a whole fleet, another one draws another sample")
    ] = "headwater"
    risk: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="share of a leaf's final answers that the region may disagree with; what is too unsure for that is 'provisional' "
            "while the region is asked, else 'unanswered'",
        ),
    ] = 0.05


class Evidence(msgspec.Struct, **_strict):
    """In which form a frame goes to the region: as a picture of its own, at once, or with others of its source in a clip (H.264), which
    takes a quarter of the bytes and less, and makes each frame wait for the clip's end."""

    form: Annotated[
        Literal["auto", "frame", "clip"],
        Meta(
            description="frame: each by itself; clip: in clips, but frames of alerts by themselves; auto: in clips where so many frames of "
            "a source are asked about that they take fewer bytes, and a clip's time is at most half of policy.deadline_ms"
        ),
    ] = "auto"
    side: Annotated[
        int,
        Meta(ge=0, le=8192, description="side in pixels that pictures are scaled to; 0: the region's input size, which it announces"),
    ] = 0
    quality: Annotated[
        int, Meta(ge=0, le=100, description="JPEG quality; 0: the best of 20, 30, 40 and 50 that both budgets allow for each look")
    ] = 0
    crf: Annotated[
        int,
        Meta(
            ge=0, le=51, description="rate factor of clips, less is better; 0: the best of 33 and 28 that both budgets allow for each look"
        ),
    ] = 0
    clip_frames: Annotated[int, Meta(ge=1, le=MAX_CLIP_FRAMES, description="a clip ends after so many frames ...")] = 30
    clip_s: Annotated[
        float,
        Meta(
            ge=0.05,
            le=10,
            description="... or so many seconds after its first one, the longest time that a look waits for its clip; sooner where its "
            "source is silent for four times as long as usual",
        ),
    ] = 2.0
    open_clips: Annotated[
        int, Meta(ge=1, le=32, description="clips in work at a time; of one source more, auto sends pictures, and clip ends the oldest one")
    ] = 8

    def wrong(self, path: str) -> Iterator[str]:
        """What is wrong between fields that are right by themselves."""
        if 0 < self.side < LEAST_SIDE:
            yield f"{path}.side is {self.side}: expected at least {LEAST_SIDE}, or 0 for the region's input size"
        if self.form == "clip" and self.side > MAX_CLIP_SIDE:
            yield f"{path}.side is {self.side}: expected at most {MAX_CLIP_SIDE} with form = 'clip'"


class Redact(msgspec.Struct, **_strict):
    """What is made unrecognisable in every picture before it leaves the leaf, those of alerts included: a zone, all objects of a class, or
    those of a class that touch a zone. A class needs the detector's eye: what it does not see at all stays visible, a zone does not."""

    zone: Annotated[
        tuple[Point, ...], Meta(max_length=64, description="polygon of [x, y] in shares of width and height; empty: anywhere")
    ] = ()
    label: Annotated[str, Meta(max_length=64, description="class of object, as the model names it; empty: the whole zone")] = ""
    how: Annotated[Literal["blur", "mask"], Meta(description="blur: only coarse patches of colour stay; mask: black")] = "blur"
    margin: Annotated[
        float, Meta(ge=0, le=1, description="share of an object's size by which its box is enlarged on every side; boxes are not exact")
    ] = 0.15
    min_score: Annotated[
        float, Meta(gt=0, lt=1, description="objects are covered from this score on, far below detector.min_score, so that none is missed")
    ] = 0.05
    sources: Annotated[tuple[str, ...], Meta(description="names of the sources it applies to; empty: all")] = ()

    def wrong(self, path: str) -> Iterator[str]:
        """What is wrong between fields that are right by themselves."""
        if not self.zone and not self.label:
            yield f"{path} has neither zone nor label: expected one of them, or both"
        try:
            Zone(self.zone)
        except ValueError as error:
            yield f"{path}.zone is {shown(self.zone)}: {error}"
