"""A detector: a picture in, detections and the time of each stage out. For one digest the answer depends on the picture alone.

The four stages are decode, prepare, predict and unpack; families (nanodet, yolov8, ...) bring the second and the fourth, engines the third.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.inference.candidates import Candidates, rounded, strongest, suppress, to_detections, united
from agents.inference.engines import Engine, PassedOver, open_engine
from agents.inference.families import FAMILIES, fitting
from agents.inference.images import Image, decode
from agents.inference.layouts import Family, Misfit
from agents.inference.network import Network, UnusableModel, read_network
from agents.inference.tensors import Pixels
from agents.models import store
from agents.models.labels import COCO_80, COCO_91, InvalidLabels, read_labels
from schemas.config import Detector as Settings
from schemas.config import Engine as EngineSettings
from schemas.detections import Detection, Detections

FAINT_BOXES = 80  # of a picture: those beyond cost more than they tell
FAINT_CANDIDATES = 240  # before doubles are removed
ANSWERS = 1  # counts changes to this room's arithmetic that change detections; part of every digest


class Stages(NamedTuple):
    """How long each stage of one look took, in seconds."""

    decode_s: float
    prepare_s: float
    predict_s: float
    unpack_s: float

    @property
    def total_s(self) -> float:
        return sum(self)


class Watch(NamedTuple):
    """What a detector is to tell of besides its answer: all that it sees of some classes, with scores that it does not report too."""

    labels: frozenset[str]
    min_score: float


class Look(NamedTuple):
    """What a detector saw in one picture.

    Attributes
    ----------
    width, height
        Of the picture, in pixels.
    watched
        What it saw of the classes that it watches, best first; None if it watches none.
    faint
        The strongest of all that it saw, its answer first and then what its answer leaves out, as arrays; None if it was not asked for.
    pixels
        The picture itself as it was decoded (BGR, at any scale), for whoever watches the camera.
    """

    detections: Detections
    width: int
    height: int
    stages: Stages
    watched: tuple[Detection, ...] | None = None
    faint: Faint | None = None
    pixels: Pixels | None = None


class Faint(NamedTuple):
    """Boxes of one frame, best first, with their numbers rounded as a record's are."""

    labels: tuple[str, ...]
    scores: NDArray[np.float64]  # [n], 0 to 1
    corners: NDArray[np.float64]  # [n, 4]: x0, y0, x1, y1 as shares of the picture, 0 to 1


class Eye(NamedTuple):
    """A network at one input size, and how its outputs are read."""

    engine: Engine
    side: int
    layout: Any


class Detector:
    """A model that is loaded, at one or several input sizes. `look` may be called from several threads at a time.

    Attributes
    ----------
    name
        For verdicts and people, such as `nanodet-g 224 int8`.
    digest
        SHA-256, in hexadecimal, of all that decides an answer: the model's file, the settings, the engine and this code's revision.
    labels
        Names of the classes, in the network's order.
    asked, got, passed_over
        The engines in order of preference, the one in use, and those before it with the reason.
    watch
        What it tells of besides its answer; that is no part of the answer, nor of the digest.
    faint_from
        Score from which on it tells of anything besides its answer (`Look.faint`); None: it does not.
    """

    def __init__(
        self, settings: Settings, family: Family, eyes: Sequence[Eye], labels: tuple[str, ...], name: str, model_digest: str
    ) -> None:
        self._settings = settings
        self._family = family
        self._eyes = tuple(eyes)
        self.labels = labels
        self.name = name
        self.asked: tuple[str, ...] = eyes[0].engine.asked
        self.got: str = eyes[0].engine.got
        self.passed_over: tuple[PassedOver, ...] = eyes[0].engine.passed_over
        self.digest = _digest(settings, labels, model_digest, [eye.engine.got for eye in eyes])
        self.watch: Watch | None = None
        self.faint_from: float | None = None
        # what a family answers once for each object needs no suppression, unless several sizes answer
        self._doubles = family.NAME in ("nanodet", "yolov8") or len(eyes) > 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Input sides in pixels."""
        return tuple(eye.side for eye in self._eyes)

    @property
    def engine(self) -> Engine:
        """The engine of the first size."""
        return self._eyes[0].engine

    def look(self, jpeg: bytes) -> Look:
        """Detect what is in one picture.

        Raises
        ------
        images.UndecodableImage
            If the bytes are not a whole JPEG.
        EngineFailed
            If the engine could not run this time.
        """
        started = time.perf_counter()
        image = decode(jpeg, max(self.sizes))
        return self._look(image, time.perf_counter() - started)

    def look_at(self, pixels: Pixels) -> Look:
        """Detect what is in one picture that is decoded already (BGR), such as a frame of a clip. Raises `EngineFailed` as `look` does."""
        return self._look(Image(pixels, pixels.shape[1], pixels.shape[0]), 0.0)

    def _look(self, image: Image, decode_s: float) -> Look:
        decoded = time.perf_counter()
        prepare_s = predict_s = 0.0
        parts = []
        asked = self._settings.min_score
        least = min(asked, asked if self.watch is None else self.watch.min_score, asked if self.faint_from is None else self.faint_from)
        for eye in self._eyes:
            before = time.perf_counter()
            tensor, placement = self._family.prepare(image.pixels, eye.side, eye.layout)
            ready = time.perf_counter()
            outputs = eye.engine.predict(tensor)
            predicted = time.perf_counter()
            parts.append(self._family.unpack(outputs, eye.layout, placement, least))
            prepare_s += ready - before
            predict_s += predicted - ready
        candidates = united(parts)
        if self.faint_from is not None and self.watch is None:  # of what is below the answer a few tell enough
            candidates = strongest(candidates, max(FAINT_CANDIDATES, int((candidates.scores >= asked).sum())))
        if self._doubles:
            candidates = suppress(candidates, self._settings.nms_iou)
        watched = faint = None
        if self.watch is not None:  # the weaker ones change nothing of the answer: in suppression only the stronger box decides
            watched = self._watched(candidates, self.watch)
        if self.faint_from is not None:
            faint = self._faint(strongest(candidates.take(candidates.scores >= min(asked, self.faint_from)), FAINT_BOXES))
        if least < asked:
            candidates = candidates.take(candidates.scores >= asked)
        detections = to_detections(candidates, self.labels)
        unpack_s = time.perf_counter() - decoded - prepare_s - predict_s
        stages = Stages(decode_s, prepare_s, predict_s, unpack_s)
        return Look(detections, image.width, image.height, stages, watched, faint, image.pixels)

    def _watched(self, candidates: Candidates, watch: Watch) -> tuple[Detection, ...]:
        classes = [index for index, label in enumerate(self.labels) if label in watch.labels]
        return self._all(candidates.take(np.isin(candidates.classes, classes) & (candidates.scores >= watch.min_score)))

    def _faint(self, found: Candidates) -> Faint:
        return Faint(tuple(self.labels[index] for index in found.classes.tolist()), rounded(found.scores), rounded(found.boxes))

    def _all(self, found: Candidates) -> tuple[Detection, ...]:
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
        return tuple(Detection(self.labels[index], score, *box) for box, score, index in rows)

    def warm_up(self, looks: int = 2) -> float:
        """Run each size a few times, so that the first frame does not pay for what engines put off; the seconds of the last round."""
        last_s = 0.0
        for _ in range(looks):
            started = time.perf_counter()
            for eye in self._eyes:
                eye.engine.predict(np.zeros((1, 3, eye.side, eye.side), np.float32))
            last_s = time.perf_counter() - started
        return last_s


def load(detector: Settings, engine: EngineSettings, models: Path, watch: Watch | None = None, faint_from: float | None = None) -> Detector:
    """Load the detector that a site's configuration asks for; one trial run of each size makes certain that its outputs can be read.

    Parameters
    ----------
    models
        Folder of the prepared models (for `nanodet-g`; other models are files that the configuration names).
    watch
        What it is to tell of besides its answer.
    faint_from
        Score from which on it is to tell of anything besides its answer.

    Raises
    ------
    store.ModelNotPrepared
        If our own model is not there yet.
    UnusableModel, layouts.Misfit, labels.InvalidLabels
        If the file, its layout or the labels do not fit the configuration, or a class that is to be watched is none of the model's.
    engines.NoEngine, flavours.WrongRuntime
        If nothing here can run it.
    """
    label_sets = labels_of(detector)
    family = FAMILIES[detector.family]
    eyes, labels, digests = [], label_sets[0], []
    networks: dict[Path, Network] = {}
    for side in detector.sizes:
        path, digest = model_file(detector, side, models)
        if path not in networks:
            networks[path] = read_network(path)
        digests.append(digest)
        eye, labels = _open(networks[path], side, family, engine, label_sets)
        eyes.append(eye)
    ready = Detector(detector, family, eyes, labels, detector.name or name_of(detector), "".join(digests))
    check_watch(watch, ready.name, labels)
    ready.watch, ready.faint_from = watch, faint_from
    return ready


def labels_of(detector: Settings) -> tuple[tuple[str, ...], ...]:
    """The names of a model's classes; several lists where only its outputs tell which it is. Raises `InvalidLabels`."""
    return (read_labels(Path(detector.labels)),) if detector.labels else (COCO_80, COCO_91)


def check_watch(watch: Watch | None, name: str, labels: Iterable[str]) -> None:
    """Raise `InvalidLabels` if a class that is to be watched is none of a model's."""
    if watch is not None and (unknown := sorted(watch.labels - set(labels))):
        raise InvalidLabels(f"$.redact has the label {unknown[0]!r}, which {name} does not know: it could be neither found nor covered")


def model_file(detector: Settings, side: int, models: Path) -> tuple[Path, str]:
    """The file that serves an input side, and its SHA-256."""
    if detector.model == store.OWN_MODEL:
        return store.find(models, side, detector.quantized)
    path = Path(detector.model)
    try:
        return path, store.file_digest(path)
    except OSError as error:
        raise UnusableModel(f"the model {path} cannot be read: {error.strerror or error}") from None


def _open(
    network: Network, side: int, family: Family, settings: EngineSettings, label_sets: Iterable[tuple[str, ...]]
) -> tuple[Eye, tuple[str, ...]]:
    image = network.image
    if any(isinstance(length, int) and length != wanted for length, wanted in zip(image.shape, (1, 3, side, side), strict=True)):
        fix = f": set detector.sizes = [{image.shape[2]}]" if image.shape[2] == image.shape[3] else ": only square inputs are supported"
        raise UnusableModel(f"{network.path} takes {image}, not pictures of {side} x {side}{fix}")
    engine = open_engine(network, side, settings)
    misfit: Misfit | None = None
    for labels in label_sets:
        try:
            layout = family.fit(engine.outputs, side, len(labels))
        except Misfit as error:
            misfit = misfit or error
            continue
        return Eye(engine, side, layout), labels
    others = [name for labels in label_sets for name in fitting(engine.outputs, side, len(labels))]
    hint = f'; detector.family = "{others[0]}" would fit' if others else ""
    raise Misfit(f'{network.path} does not fit detector.family = "{family.NAME}": {misfit}{hint}') from None


def name_of(settings: Settings) -> str:
    """What a model is called that was given no name: what it is, its sizes and its precision."""
    sizes = "+".join(map(str, settings.sizes))
    if settings.model == store.OWN_MODEL:
        return f"{settings.model} {sizes} {'int8' if settings.quantized else 'fp32'}"
    return f"{Path(settings.model).stem} {sizes}"[:128]


def _digest(settings: Settings, labels: Sequence[str], model_digest: str, engines: Sequence[str]) -> str:
    decisive = [ANSWERS, settings.family, settings.sizes, settings.min_score, settings.nms_iou, labels, model_digest, engines]
    return hashlib.sha256(msgspec.json.encode(decisive)).hexdigest()
