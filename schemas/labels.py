"""What is truly there: labels of records, given by people or by whatever knows better than any model here."""

from __future__ import annotations

from schemas.detections import Detections
from schemas.identity import RecordIdText, Source
from schemas.messages import Name, Utc, check_id
from schemas.records import InvalidRecord, Record

MAX_CLASSES = 100


class Label(Record, frozen=True, kw_only=True):
    """All objects that a frame truly shows, with the score 1; none says that it shows none.

    `classes` are those that were looked for: answers are held against the label in these only; without any, in all. `by` says who
    labelled, `at` when. Of two labels of one record the later one in the log holds.
    """

    id: RecordIdText
    source: Source
    objects: Detections
    by: Name
    at: Utc
    classes: tuple[Name, ...] = ()

    def check(self) -> None:
        check_id("Label.id", self.id, self.source)
        if len(self.classes) > MAX_CLASSES:
            raise InvalidRecord(f"Label.classes has {len(self.classes)} names: expected at most {MAX_CLASSES}")
        strange = sorted({each.label for each in self.objects} - set(self.classes)) if self.classes else []
        if strange:
            raise InvalidRecord(f"Label.objects has a {strange[0]!r:.80}: expected one of its classes, {', '.join(self.classes):.200}")

    def of(self, detections: Detections) -> Detections:
        """Those of an answer that the label says something of."""
        return Detections(each for each in detections if each.label in self.classes) if self.classes else detections
