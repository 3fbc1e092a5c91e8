"""What a simulation hands over to be judged: one run of one policy over the video, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from infra.bench.cascade.intervals import BLOCK_S, LEVEL, RESAMPLES
from schemas.detections import Detections

LEAF, REGION, RANDOM, UNIFORM, ORACLE = "leaf", "region", "random", "uniform", "oracle"
"""Policies that others are compared with: nothing is asked, everything is, and three ways to choose."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes
    ----------
    policy
        Its name; `LEAF`, `REGION`, `RANDOM`, `UNIFORM` and `ORACLE` are what others are compared with.
    budget_share
        The share of frames that the region may infer; None where there is no such budget (`LEAF`, `REGION`, `everything`).
    setting
        What else distinguishes it (evidence, teaching, delay), for people. A run is compared with the baselines of its own setting and
        budget, and with `LEAF` and `REGION` of its setting, else with those of the empty one.
    seed
        Runs that differ by their seed alone are reported as one, with their spread.
    instant, joined
        For each frame of the video: the leaf's answer when the frame came, and what is believed of it in the end.
    inferred
        Whether the region looked at the frame.
    bytes_by_lane
        For each lane of the link, both directions: bytes that each frame caused.
    """

    policy: str
    budget_share: float | None
    setting: str = ""
    seed: int | None = None
    instant: Sequence[Detections]
    joined: Sequence[Detections]
    inferred: Sequence[bool]
    bytes_by_lane: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        frames = len(self.instant)
        parts = {"joined": self.joined, "inferred": self.inferred}
        parts |= {f"bytes_by_lane[{lane!r}]": sizes for lane, sizes in self.bytes_by_lane.items()}
        for name, part in parts.items():
            if len(part) != frames:
                raise ValueError(
                    f"Run.{name} of {self.name} has {len(part)} entries: expected {frames}, one for each frame as in `instant`"
                )
        if self.budget_share is not None and not 0 <= self.budget_share <= 1:
            raise ValueError(f"Run.budget_share of {self.policy} is {self.budget_share}: expected a share from 0 to 1")

    @property
    def name(self) -> str:
        """For people, such as `uniform 10 %, clip`."""
        budget = "" if self.budget_share is None else f" {self.budget_share * 100:g} %"
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.policy}{budget}{seed}" + (f", {self.setting}" if self.setting else "")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What all runs of a comparison share.

    Attributes
    ----------
    video
        Its name, for people.
    fps
        Frames a second.
    baseline_bytes
        B0: for each frame, the bytes of the camera's own frame as a JPEG at full size and quality 90.
    scored_from
        The first frame that is scored, from 0; earlier ones are what constants were chosen on. Bytes and inferences count from there too.
    labels
        Which labels count; None: those that have truths.
    operating_score
        Detections with this score or more are what is answered (for precision, recall and F1).
    block_s, resamples, level, seed
        Of the bootstrap: seconds in a block, how many resamples, the probability that an interval states, and what draws them.
    facts
        Models, evidence, delay and whatever else is to be printed with the figures.
    """

    video: str
    fps: float
    baseline_bytes: Sequence[int]
    scored_from: int = 0
    labels: tuple[str, ...] | None = None
    operating_score: float = 0.4
    block_s: float = BLOCK_S
    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0
    facts: Mapping[str, str] = {}
