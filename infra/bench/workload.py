"""What a leaf writes for its link: verdicts of several cameras whose objects wander, and alerts among them. Made of a seed, as realistic
records (`streams.outputs`), so that they weigh and compress as a leaf's do.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import uuid
from collections.abc import Iterator

from schemas.detections import Detection, Detections
from schemas.identity import RecordId, alert_id
from schemas.messages import RANK, Alert, AlertState, Status, Tier, Verdict
from schemas.rules import Zone
from streams import outputs
from streams.sink import Output
from streams.topology import Topic

CAMERAS = 16
ALERT_SHARE = 0.02
_LABELS = ("person", "person", "person", "person", "car", "bicycle", "dog", "backpack")
_MODEL = "nanodet-g-r1-int8-224"
_DIGEST = hashlib.sha256(_MODEL.encode()).hexdigest()
_ZONE = Zone([(0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)])


class Camera:
    """One source: objects that move a little from frame to frame."""

    def __init__(self, name: str, site: str, dice: random.Random) -> None:
        self.name, self.site, self.dice = name, site, dice
        self.epoch = str(uuid.UUID(int=dice.getrandbits(128), version=4))  # drawn from the seed
        self.sequence = 0
        self._tracks = dice.randrange(1000)
        self._objects = [self._object() for _ in range(dice.randint(5, 11))]

    def look(self, now: dt.datetime) -> Verdict:
        """The verdict on its next frame."""
        dice = self.dice
        if dice.random() < 0.02:  # one leaves, another comes
            self._objects[dice.randrange(len(self._objects))] = self._object()
        seen = sorted((self._seen(each) for each in self._objects), key=lambda detection: -detection.score)
        record = RecordId(self.name, self.epoch, self.sequence)
        self.sequence += 1
        return Verdict(
            id=str(record),
            source=self.name,
            captured_at=now,
            status=Status.FINAL,
            detections=Detections(seen),
            confidence=round(dice.uniform(0.4, 0.95), 4),
            tier=Tier.LEAF,
            site=self.site,
            rank=RANK[Tier.LEAF],
            generation=0,
            model=_MODEL,
            model_digest=_DIGEST,
        )

    def alert(self, now: dt.datetime) -> Alert:
        """An alert on its next frame."""
        verdict = self.look(now)
        best = verdict.detections[0]
        return Alert(
            id=alert_id("object-in-zone", verdict.id),
            rule="object-in-zone",
            source=self.name,
            site=self.site,
            record=verdict.id,
            captured_at=now,
            state=AlertState.RAISED,
            version=AlertState.RAISED.height,
            label=best.label,
            min_score=0.5,
            zone=_ZONE,
            seen=Detections([best]),
            score=best.score,
            held_s=round(self.dice.uniform(0, 3), 3),
            model_digest=_DIGEST,
            deadline_ms=10_000,
        )

    def _object(self) -> list[float]:
        dice = self.dice
        self._tracks += 1
        width = dice.uniform(0.02, 0.15)
        return [
            dice.randrange(len(_LABELS)),
            self._tracks,
            dice.uniform(0, 0.8),
            dice.uniform(0.1, 0.6),
            width,
            width * 2,
            dice.uniform(0.4, 0.9),
        ]

    def _seen(self, each: list[float]) -> Detection:
        dice = self.dice
        each[2] = min(0.84, max(0.0, each[2] + dice.gauss(0, 0.004)))
        each[3] = min(0.69, max(0.0, each[3] + dice.gauss(0, 0.003)))
        score = min(0.99, max(0.26, each[6] + dice.gauss(0, 0.05)))
        return Detection(_LABELS[int(each[0])], score, each[2], each[3], each[2] + each[4], each[3] + each[5], int(each[1]))


class Workload:
    """The records of one run; a run with the same seed has the same, but for the times of their capture."""

    def __init__(self, site: str, verdicts: Topic, alerts: Topic, seed: int) -> None:
        self.verdicts, self.alerts = verdicts, alerts
        self._dice = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self._cameras = [Camera(f"cam-{number + 1}", site, random.Random(seed * 1000 + number)) for number in range(CAMERAS)]  # noqa: S311

    def alert(self, now: dt.datetime) -> Output:
        """One alert, captured now."""
        return outputs.alert(self.alerts, self._dice.choice(self._cameras).alert(now))

    def backlog(self, count: int, start: dt.datetime, seconds: float) -> Iterator[Output]:
        """`count` records as a leaf writes them within `seconds` from `start`: verdicts camera after camera, and alerts among them."""
        every = round(1 / ALERT_SHARE)
        for number in range(count):
            now = start + dt.timedelta(seconds=seconds * number / count)
            camera = self._cameras[number % CAMERAS]
            yield (
                outputs.alert(self.alerts, camera.alert(now))
                if number % every == every - 1
                else outputs.answer(self.verdicts, camera.look(now))
            )
