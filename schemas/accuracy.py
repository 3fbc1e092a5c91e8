"""How accurate a stream's answers are, measured while it runs: what is said of it, flat, so that any sink can keep it.

How it is measured does not live here (`agents.cascade.accuracy`, `calibration`, `risk`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.identity import Site, Source
from schemas.messages import Confidence, Count, Digest, Name, Text, Utc
from schemas.records import InvalidRecord, Record

Known = Confidence | None


class Accuracy(Record, frozen=True, kw_only=True):
    """The accuracy of one model's answers to one source over a window of frames that were judged, the latest of which was taken at `until`.

    `leaf` is what the leaf answered, `results` what readers have: the region's answer where it would have been asked without the sample.
    Each share lies from `low` to `high` in truth with the probability `level`; where `unknown` says why, nothing is known and they are
    missing. `missing` frames more were drawn, and never judged. `against` is the region, which is not the truth, or true labels.

    `calibration_error` is the mean distance of the detections' scores from the share that is right (`calibration_pairs` of them, chance
    taken out). Of answers with a confidence of `sure_from` or more, a share of `sure_share`, the reference disagrees with at most
    `risk` of them, with a probability of .9 (`schemas.config_cascade.Audit`); without it no confidence keeps that.
    """

    source: Source
    site: Site
    model: Name
    model_digest: Digest
    against: Literal["region", "labels"]
    since: Utc
    until: Utc
    frames: Count
    missing: Count
    level: Confidence
    unknown: Text | None = None
    leaf_precision: Known = None
    leaf_precision_low: Known = None
    leaf_precision_high: Known = None
    leaf_recall: Known = None
    leaf_recall_low: Known = None
    leaf_recall_high: Known = None
    leaf_f1: Known = None
    leaf_f1_low: Known = None
    leaf_f1_high: Known = None
    results_precision: Known = None
    results_precision_low: Known = None
    results_precision_high: Known = None
    results_recall: Known = None
    results_recall_low: Known = None
    results_recall_high: Known = None
    results_f1: Known = None
    results_f1_low: Known = None
    results_f1_high: Known = None
    calibration_error: Known = None
    calibration_pairs: Count = 0
    risk: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    sure_from: Known = None
    sure_share: Known = None

    def check(self) -> None:
        if self.since > self.until:
            raise InvalidRecord(f"Accuracy.since is {self.since.isoformat()}: expected at most until, {self.until.isoformat()}")
