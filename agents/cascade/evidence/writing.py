"""Evidence as it is written: a question becomes an escalation with its evidence, by itself or with others of its source in a clip.

All encoding is done beside the looks, in one thread that lets them go first. What a look may cost is told by whoever holds the budgets, and
is told back what it did cost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from agents.cascade.evidence.clip import LEAST_SIDE, NoPyAV, pyav
from agents.cascade.evidence.clips import Clips
from agents.cascade.evidence.forms import Form, Forms
from agents.cascade.evidence.frame import encode_frame, redacted
from agents.cascade.evidence.pixels import scaled
from agents.cascade.evidence.question import ask, asked
from agents.cascade.evidence.redaction import Area, NotLookedAt, Redaction
from agents.inference.tensors import Pixels
from agents.pools import patient_pool
from schemas.config import SiteConfig
from schemas.config_cascade import MAX_CLIP_SIDE
from schemas.detections import Detection
from schemas.envelope import JPEG
from schemas.frames import Frame
from schemas.messages import CLIP, MAX_TTL_S, Asked, Control, Escalation, Reason, Verdict
from streams import outputs, telemetry
from streams.sink import Output
from streams.topology import Topic

log = logging.getLogger("headwater.evidence")

ASSUMED_SIDE = 512  # pixels, until the region has said what it takes
AT_ONCE = frozenset({Reason.ALERT, Reason.UNJUDGED})  # somebody waits for the answer: such a frame waits for no clip


class Question(msgspec.Struct, frozen=True):
    """What the region is to be asked about a frame, and what of the byte budget is set aside for it. `watched` is what the look saw of the
    classes that may not be shown; None if nobody has looked."""

    frame: Frame
    verdict: Verdict
    reason: Reason
    alerts: tuple[str, ...]
    reserved_bytes: float
    watched: Sequence[Detection] | None = None
    audit_rate: float | None = None  # with the reason `audit`


class _Part(NamedTuple):
    """One frame of a clip, as its question tells of it."""

    asked: Asked
    traceparent: str | None


class Writing:
    """The evidence of one leaf process.

    Parameters
    ----------
    ordinary, urgent
        Topics of questions, and of those about the frames of alerts.
    clock
        Monotonic seconds.

    Raises
    ------
    NoPyAV
        If the site's file asks for clips and they cannot be made here.
    """

    def __init__(self, config: SiteConfig, ordinary: Topic, urgent: Topic, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.policy, self.site = config.evidence, config.policy, config.name
        self.redaction = Redaction(config.redact)
        self.side = config.evidence.side or ASSUMED_SIDE
        self._ordinary, self._urgent, self._clock = ordinary, urgent, clock
        asks = config.link is not None and config.policy.mode != "off"
        self.forms = Forms(config.evidence, deadline_ms=config.policy.deadline_ms, clips=asks and self._can_clip())
        self._pool = patient_pool("evidence")
        self.clips: Clips[_Part] = Clips(config.evidence, self._pool)

    def _can_clip(self) -> bool:
        if self.settings.form == "frame":
            return False
        try:
            pyav()
        except NoPyAV as error:
            if self.settings.form == "clip":
                raise
            log.info("each frame is sent by itself: %s", error)
            return False
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.clips.close()

    def heed(self, control: Control) -> None:
        """What the region announced: its input size, unless the site's file sets one."""
        self.side = self.settings.side or control.input_side

    async def write(self, question: Question, look_bytes: float, spent: Callable[[int], None]) -> Output | None:
        """Make a question's evidence, and what is to be written of it; None if it is in a clip that another question's caller writes.

        Parameters
        ----------
        look_bytes
            What the budgets allow a look to cost.
        spent
            Called once with what it does cost, as soon as that is known; 0 if the frame is in a clip already.

        Raises
        ------
        UndecodableImage
            If the frame is not a whole JPEG.
        NotLookedAt
            If it may not leave, since nobody knows what must be covered in it.
        """
        frame = question.frame
        areas = self.redaction.areas(frame.source, question.watched)
        key = (frame.source, frame.id.stream, question.reason)
        at_once = question.reason in AT_ONCE or self.side > MAX_CLIP_SIDE or self._crowded(key)
        form = self.forms.choose(key, self._clock(), look_bytes, at_once=at_once)
        make = self._clip if form.clip or self.clips.holds(str(frame.id)) else self._picture
        return await make(question, areas, key, form, spent)

    def _crowded(self, key: tuple[str, ...]) -> bool:
        """Whether another clip would only end one that is open: then clips of a frame or two would follow, which save nothing."""
        return self.settings.form == "auto" and len(self.clips) >= self.settings.open_clips and not self.clips.open(key)

    async def shown(self, frame: Frame, watched: Sequence[Detection] | None) -> Frame | None:
        """The frame as people may see it elsewhere; None if nobody knows what must be covered in it. Raises `UndecodableImage`."""
        try:
            areas = self.redaction.areas(frame.source, watched)
        except NotLookedAt:
            return None
        if not areas:
            return frame
        jpeg = await asyncio.get_running_loop().run_in_executor(self._pool, redacted, frame.jpeg, areas)
        return msgspec.structs.replace(frame, jpeg=jpeg)

    # ---- both forms

    async def _picture(
        self, question: Question, areas: Sequence[Area], key: tuple[str, ...], form: Form, spent: Callable[[int], None]
    ) -> Output:
        frame, start = question.frame, time.perf_counter()
        encode = partial(encode_frame, frame.jpeg, side=self.side, quality=form.setting, areas=areas)
        evidence = await asyncio.get_running_loop().run_in_executor(self._pool, encode)
        output = self._output(question, [_Part(asked(frame, question.verdict), frame.traceparent)], evidence, JPEG)
        telemetry.STAGE_SECONDS.labels("evidence").observe(time.perf_counter() - start)
        telemetry.ESCALATIONS.labels(question.reason).inc()
        self.forms.sent_picture(key, form.setting, len(evidence))
        spent(len(evidence))
        return output

    async def _clip(
        self, question: Question, areas: Sequence[Area], key: tuple[str, ...], form: Form, spent: Callable[[int], None]
    ) -> Output | None:
        frame, start, crf, side = question.frame, time.perf_counter(), form.setting, self.side
        part = _Part(asked(frame, question.verdict, among=self.settings.clip_frames), frame.traceparent)

        def load() -> Pixels:
            return scaled(frame.jpeg, side, areas, block=LEAST_SIDE)

        def encoded(size: int) -> None:
            if size:
                telemetry.STAGE_SECONDS.labels("evidence").observe(time.perf_counter() - start)
                telemetry.ESCALATIONS.labels(question.reason).inc()  # by frames, as answers are, and before the clip is written
            spent(size)

        made = await self.clips.add(key, str(frame.id), frame.id.sequence, part, load, crf, encoded)
        if made is None:
            return None
        self.forms.sent_clip(key, made.crf, made.sizes)
        return self._output(question, made.items, made.data, CLIP)

    def _output(self, question: Question, parts: Sequence[_Part], evidence: bytes, content_type: str) -> Output:
        asking: Escalation = ask(
            question.frame.source,
            [part.asked for part in parts],
            evidence,
            content_type,
            site=self.site,
            reason=question.reason,
            deadline_ms=self.policy.deadline_ms,
            ttl_s=self.policy.ttl_s if question.audit_rate is None else MAX_TTL_S,
            alerts=question.alerts,
            audit_rate=question.audit_rate,
        )
        topic = self._urgent if question.reason is Reason.ALERT else self._ordinary
        output = outputs.escalation(topic, asking, evidence, parts[0].traceparent)
        telemetry.ESCALATION_BYTES.inc(len(evidence))
        return output
