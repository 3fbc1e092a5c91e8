"""How a leaf sees: looks at frames by the ladder's steps, in threads that it can do without, and tries broken steps beside the stream.

A frame whose look fails or hangs is looked at by the next step; only where no step works is there no opinion on it. The rules of going
down and up are `agents.ladder`'s, what the steps are `agents.steps`'.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agents.drift.traits import Traits, traits
from agents.inference.detector import Detector, Look
from agents.inference.engines import EngineFailed, NoEngine
from agents.inference.images import UndecodableImage
from agents.ladder import Change, Ladder, Limits
from agents.pace import Pace
from agents.pools import Attempt, LimitedPool
from agents.sizes import BUSY, OtherSizes, Sizes
from agents.steps import Rung
from schemas.config import SiteConfig
from schemas.links import Breaker
from streams import telemetry

log = logging.getLogger("headwater.ladder")

TICK_S = 0.2
_SAID = {Breaker.CLOSED: 0, Breaker.HALF_OPEN: 1, Breaker.OPEN: 2}
_WORDS = {"failed": "failed", "hung": "hung", "slow": "was slow", "absent": "was not to be had"}


class Seen(NamedTuple):
    """What a frame's look gave, whose it is, and what is not ordinary about it."""

    look: Look
    model: str
    digest: str
    note: str | None = None
    sizes: Sizes | None = None  # the set of input sides, where it may be chosen: None for a smaller model
    picture: Traits | None = None  # what the frame itself is like, if that was asked for


class _Broken(Exception):
    """A step that could not be loaded."""

    def __init__(self, reason: str, absent: bool) -> None:
        super().__init__(reason)
        self.absent = absent


class Sight:
    """The looks of a leaf.

    Parameters
    ----------
    rungs
        The steps, the first choice first.
    slow_s, hang_s, load_s
        Longest time that 19 of 20 looks may take, any look, and loading a model.
    workers
        Looks at a time.
    others
        The detectors at other sets of input sides, of the first choice's model.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        *,
        others: OtherSizes | None = None,
        slow_s: float,
        hang_s: float = 5.0,
        load_s: float = 60.0,
        workers: int = 2,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rungs = tuple(rungs)
        self.hang_s, self.load_s, self._clock = hang_s, load_s, clock
        self.others, self.workers, self.slow_s = others, workers, slow_s
        self._pace = Pace()
        self.ladder = Ladder(len(rungs), limits or Limits(slow_s=slow_s), random.random)
        self._lock = threading.RLock()
        self._loading = [threading.Lock() for _ in rungs]
        self._detectors: dict[int, Detector] = {}
        self._files: dict[int, object] = {}  # how the files of a broken step looked
        self._latest: bytes | None = None
        self._step: int | None = -1
        self._note: str | None = None
        self._halt = threading.Event()
        self._pool = LimitedPool(workers, "look", self._hung)
        self._beside = LimitedPool(1, "trial", self._hung)
        self._keeper: threading.Thread | None = None
        for rung in self.rungs:
            telemetry.BREAKER.labels(rung.label).set(0)

    # ---- life cycle

    def start(self) -> None:
        """Load the first step that can be loaded, and look after the others from now on. Without any, say so and go on all the same."""
        self._pool.submit(self._open_eyes).result()
        self._keeper = threading.Thread(target=self._keep, name="ladder", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        self._halt.set()
        if self._keeper is not None:
            self._keeper.join(2 * TICK_S + 1)
        for pool in (self._pool, self._beside):
            pool.close()

    @property
    def stuck(self) -> int:
        """Threads that were left behind in a look that does not return."""
        return self._pool.left_behind().total() + self._beside.left_behind().total()

    @property
    def step(self) -> int:
        """The step in use; the number of steps where none works."""
        with self._lock:
            chosen = self.ladder.choose()
            return len(self.rungs) if chosen is None else chosen

    # ---- looks

    def see(
        self, jpeg: bytes, begun: Callable[[], None] = lambda: None, sizes: Sizes | None = None, *, watched: bool = False
    ) -> Future[Seen | None]:
        """Look at a picture as soon as a thread is free; None if no step works.

        Parameters
        ----------
        sizes
            The set of input sides to look in, where the first choice's model works, the set can be had and no frames wait in line; else the
            configured one.
        watched
            Whether it is to be said what the picture itself is like (`Seen.picture`).
        begun
            Called in the thread once, when the look begins; what it raises is the answer.

        Raises
        ------
        images.UndecodableImage
            From the future, as `Detector.look` does.
        """

        def look(attempt: Attempt) -> Seen | None:
            if attempt.number == 0:
                begun()
            seen = self._look(jpeg, attempt, sizes if self._pool.waiting <= self.workers else None)
            if seen is None or seen.look.pixels is None:
                return seen
            picture = traits(seen.look.pixels) if watched else None
            return seen._replace(look=seen.look._replace(pixels=None), picture=picture)  # which would be kept until the answer is out

        return self._pool.submit(look)

    def try_sizes(self, jpeg: bytes, seen: Seen) -> Future[dict[Sizes, Look] | None]:
        """Look at a frame once more, beside the stream, in every set of sizes that it was not seen in; None if not all can be had."""

        def look(attempt: Attempt) -> dict[Sizes, Look] | None:
            if attempt.number or self.others is None or seen.sizes is None:
                return None  # it hung
            found = {seen.sizes: seen.look}
            for sizes in self.others.sets:
                if sizes not in found:
                    tried = self._look_in(sizes, jpeg, attempt)
                    if tried is None:
                        return None
                    found[sizes] = tried.look
            return found

        return self._beside.submit(look)

    def at_most_s(self) -> float:
        """How long a look may take so that frames that come as they do now keep the threads busy for no more than `BUSY` of the time."""
        with self._lock:
            return min(BUSY * self.workers / self._pace.rate(self._clock()), self.slow_s * BUSY)

    def _look_in(self, sizes: Sizes, jpeg: bytes, attempt: Attempt) -> Seen | None:
        """A look in a set of sizes; None if it cannot be had."""
        others = self.others
        if others is None:
            return None
        if sizes == others.configured:
            number, detector = next(((n, each) for n, each in sorted(self._detectors.items()) if self.rungs[n].model == 0), (0, None))
        else:
            detector = others.find(sizes)
            number = -1 - others.index(sizes) if detector is not None else 0
        if detector is None:
            return None
        attempt.within(self.hang_s, number)
        try:
            look = detector.look(jpeg)
        except EngineFailed as error:
            if number < 0:
                others.broke(sizes, str(error))
            return None
        others.took(sizes, look.stages.total_s)
        return Seen(look, detector.name, detector.digest, sizes=sizes)

    def _look(self, jpeg: bytes, attempt: Attempt, sizes: Sizes | None) -> Seen | None:
        passed_over: set[int] = set()
        with self._lock:
            self._pace.add(self._clock())
        while True:
            with self._lock:
                number = self.ladder.choose(passed_over)
                note = self._note_on(number, passed_over)
            if number is None:
                self._latest = jpeg
                return None
            own = self.others.configured if self.others is not None and self.rungs[number].model == 0 else None
            if own is not None and sizes is not None and sizes != own and (found := self._look_in(sizes, jpeg, attempt)) is not None:
                self._latest = jpeg
                return found._replace(note=note)
            try:
                detector = self._detector(number, attempt)
                attempt.within(self.hang_s, number)
                look = detector.look(jpeg)
            except (_Broken, EngineFailed) as error:
                self._report(number, error, attempt)
                passed_over.add(number)
                continue
            if not attempt.given_up:
                with self._lock:
                    self.ladder.took(number, look.stages.total_s, self._clock())
                    self._tell()
            if own is not None and self.others is not None:
                self.others.took(own, look.stages.total_s)
            self._latest = jpeg
            return Seen(look, detector.name, detector.digest, note, own)

    def _detector(self, number: int, attempt: Attempt) -> Detector:
        """A step's detector, loaded if it is not yet; raises `_Broken`."""
        detector = self._detectors.get(number)
        if detector is not None:
            return detector
        attempt.within(self.load_s, number)
        with self._loading[number]:
            detector = self._detectors.get(number)
            if detector is not None:
                return detector
            rung = self.rungs[number]
            self._files[number] = _looks_of(rung.files)
            try:
                detector = rung.load()
            except Exception as error:  # whatever keeps a model from being loaded, another step may work
                reason = error.reasons if isinstance(error, NoEngine) else str(error) or type(error).__name__
                raise _Broken(reason, isinstance(error, NoEngine)) from error
            if not attempt.given_up:
                self._detectors[number] = detector
            return detector

    def _report(self, number: int, error: Exception, attempt: Attempt) -> None:
        if attempt.given_up:
            return
        with self._lock:
            if isinstance(error, _Broken):
                self.ladder.broken(number, str(error), self._clock(), absent=error.absent)
            else:
                self.ladder.failed(number, str(error), self._clock())
            self._tell()

    def _hung(self, number: int) -> None:
        """A look or a loading was given up; called by the pools."""
        if number < 0 and self.others is not None:
            self.others.hung(-1 - number, f"a look did not come back within {self.hang_s:g} s")
            telemetry.HUNG.set(self.stuck)
            return
        loaded = number in self._detectors
        limit_s = self.hang_s if loaded else self.load_s
        with self._lock:
            what = "a look" if loaded else "loading the model"
            self.ladder.hung(number, f"{what} did not come back within {limit_s:g} s", self._clock())
            self._tell()
        telemetry.HUNG.set(self.stuck)

    # ---- what is done beside the stream

    def _open_eyes(self, attempt: Attempt) -> None:
        while True:
            with self._lock:
                number = self.ladder.choose()
                if number is None:
                    self._tell()
                    return
            try:
                self._detector(number, attempt)
            except _Broken as error:
                self._report(number, error, attempt)
            else:
                with self._lock:
                    self._tell()
                return

    def _keep(self) -> None:
        """The keeper's thread: trials, one at a time, and the next step down kept loaded."""
        running: Future[None] | None = None
        while not self._halt.wait(TICK_S):
            telemetry.HUNG.set(self.stuck)
            if running is not None and not running.done():
                continue
            self._watch_files()
            with self._lock:
                number = self.ladder.due(self._clock(), +self._pool.left_behind() + self._beside.left_behind())
                self._tell()
            if number is not None:
                running = self._beside.submit(partial(self._try, number))
            elif (spare := self._spare()) is not None:
                running = self._beside.submit(partial(self._load_spare, spare))
            elif self.others is not None and self.others.waiting and self._step is not None and self._model(self._step) == 0:
                running = self._beside.submit(self._load_other)

    def _try(self, number: int, attempt: Attempt) -> None:
        if attempt.number:
            return  # it hung; it is tried again when it is due
        try:
            detector = self._detector(number, attempt)
            attempt.within(self.hang_s, number)
            seconds = self._trial(detector)
        except (_Broken, EngineFailed) as error:
            self._report(number, error, attempt)
        except Exception as error:  # noqa: BLE001 - not the engine's own failing, but it has not worked either
            self._report(number, _Broken(f"{type(error).__name__}: {error}", False), attempt)
        else:
            if not attempt.given_up:
                with self._lock:
                    self.ladder.took(number, seconds, self._clock())
                    self._tell()

    def _trial(self, detector: Detector) -> float:
        """Seconds of one look at the latest frame, or at nothing where there is none."""
        latest = self._latest
        if latest is not None:
            try:
                return detector.look(latest).stages.total_s
            except UndecodableImage:
                pass
        return detector.warm_up(1)

    def _spare(self) -> int | None:
        """The next step down, if it is not loaded yet; and what lies further down is let go."""
        with self._lock:
            current = self.ladder.choose()
            if current is None:
                return None
            spare = self.ladder.choose(range(current + 1))
            tried = (n for n, step in enumerate(self.ladder.steps) if step.state is Breaker.HALF_OPEN or step.cause == "slow")
            keep = {current, spare, *tried}
            for number in [n for n in self._detectors if n not in keep]:
                del self._detectors[number]
            return spare if spare is not None and spare not in self._detectors else None

    def _load_spare(self, number: int, attempt: Attempt) -> None:
        if attempt.number:
            return
        try:
            self._detector(number, attempt)
        except _Broken as error:
            self._report(number, error, attempt)

    def _load_other(self, attempt: Attempt) -> None:
        if attempt.number or self.others is None:
            return  # it hung, and is not tried again
        attempt.within(self.load_s, -1 - len(self.others.sets))  # none of them
        self.others.load_next()

    def _model(self, step: int) -> int | None:
        return self.rungs[step].model if 0 <= step < len(self.rungs) else None

    def _watch_files(self) -> None:
        for number, step in enumerate(self.ladder.steps):
            if step.state is not Breaker.OPEN or step.cause == "slow":
                continue
            looks = _looks_of(self.rungs[number].files)
            if looks != self._files.get(number):
                self._files[number] = looks
                with self._lock:
                    self.ladder.mended(number, self._clock())

    # ---- what is said

    def _note_on(self, number: int | None, passed_over: Collection[int]) -> str | None:
        return self._note if number == self._step else self._make_note(number, passed_over)

    def _make_note(self, number: int | None, passed_over: Collection[int] = ()) -> str | None:
        """What is not ordinary about a step's answers: that a step above it is broken. An engine that this machine never had is no
        news, as long as it is the same model."""
        if number is None:
            return None
        mine, causes = self.rungs[number], []
        for above, step in zip(self.rungs, self.ladder.steps[:number], strict=False):
            if step.state is not Breaker.CLOSED or self.rungs.index(above) in passed_over:
                causes.append((step.cause == "absent", above, step.cause or "failed"))
        causes = [cause for cause in causes if not cause[0] or cause[1].model != mine.model]
        if not causes:
            return None
        _, above, cause = min(causes, key=lambda each: each[0])  # what was never there explains less than what broke
        return f"degraded: {mine.label} after {above.label} {_WORDS[cause]}"

    def _tell(self) -> None:
        """Say what has changed; the lock is held."""
        for change in self.ladder.changes():
            self._log(change)
            telemetry.BREAKER.labels(self.rungs[change.step].label).set(_SAID[change.now])
            if change.now is Breaker.OPEN and change.cause != "slow":
                self._detectors.pop(change.step, None)  # what is tried again is loaded anew: its file may have been mended
        chosen = self.ladder.choose()
        if chosen == self._step or (chosen is not None and chosen not in self._detectors):
            return  # not before it is loaded: its name and digest are told then
        before, self._step, self._note = self._step, chosen, self._make_note(chosen)
        telemetry.LADDER_STEP.set(len(self.rungs) if chosen is None else chosen)
        if chosen is None:
            reasons = "; ".join(f"{rung.label}: {step.reason}" for rung, step in zip(self.rungs, self.ladder.steps, strict=True))
            log.critical("no model works: frames go to the region unjudged, as far as the budgets allow (%s)", reasons)
            return
        detector = self._detectors[chosen]
        got = {"asked": self.rungs[0].label, "got": self.rungs[chosen].label, "model": detector.name, "digest": detector.digest[:16]}
        telemetry.ENGINE.info({"asked": got["asked"], "got": detector.got, "model": detector.name})
        log.log(logging.INFO if before == -1 and chosen == 0 else logging.WARNING, "frames are judged by %s", got["got"], extra=got)

    def _log(self, change: Change) -> None:
        fields = {"step": change.step, "stage": self.rungs[change.step].label, "was": change.was, "state": change.now}
        if change.now is Breaker.OPEN:
            level = logging.INFO if change.was is Breaker.HALF_OPEN else logging.WARNING
            log.log(level, "step %s opened (%s): %s", fields["stage"], change.cause, change.reason, extra=fields)
        else:
            log.info("step %s is %s", fields["stage"], change.now, extra=fields)


def _looks_of(files: Sequence[Path]) -> tuple[tuple[int, int, int] | None, ...]:
    """Of each file what changes when it is replaced or written to; None where there is none."""

    def of(path: Path) -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    return tuple(map(of, files))


def slow_limit_s(config: SiteConfig) -> float:
    """`engine.slow_ms`, or half of the age that a frame may have, within bounds."""
    return (config.engine.slow_ms or min(2000, max(200, config.ingress.max_age_ms // 2))) / 1000
