"""Which steps a configuration's degradation ladder has: each model on each engine, the first choice first. What becomes of them while a
leaf runs is `agents.ladder`'s (which one judges) and `agents.sight`'s (who looks)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import msgspec

from agents.cascade.evidence.redaction import watch_of
from agents.inference.detector import Detector, Watch, check_watch, labels_of, load, name_of
from agents.models import store
from agents.models.labels import InvalidLabels
from schemas.config import Detector as Settings
from schemas.config import Engine, SiteConfig

SMALLER = (320, 224, 160)  # input sides that nanodet-g goes down to by itself, two of them at most


class Rung(msgspec.Struct, frozen=True):
    """One step: a model on an engine.

    Attributes
    ----------
    label
        For people, logs and metrics, such as `nanodet-g 224 int8 on cpu`.
    model
        Number of its model: 0 for the one that was asked for, then the smaller ones.
    load
        Makes the detector, ready to look; raises what `agents.inference.detector.load` does.
    files
        What it is read from; when one of them changes, a broken step may have been mended.
    """

    label: str
    model: int
    load: Callable[[], Detector]
    files: tuple[Path, ...] = ()


def models_of(detector: Settings) -> list[Settings]:
    """The detector and the smaller ones below it, in the order in which a leaf goes down.

    What the file lists under `detector.fallbacks`; else, for nanodet-g, up to two smaller inputs with int8 weights: 416 goes down to 320
    and 224, 320 to 224 and 160, 224 to 160. The same side counts as smaller where the weights were not int8, or the sides several.
    """
    plain = msgspec.structs.replace(detector, fallbacks=())
    if not detector.degrade:
        return [plain]
    if detector.fallbacks:
        return [plain, *(_fallback(plain, each) for each in detector.fallbacks)]
    if detector.model != store.OWN_MODEL:
        return [plain]
    light = detector.quantized and len(detector.sizes) == 1
    sides = [side for side in SMALLER if side < max(detector.sizes) or (side == max(detector.sizes) and not light)]
    return [plain, *(msgspec.structs.replace(plain, sizes=(side,), quantized=True, name="") for side in sides[:2])]


def _fallback(detector: Settings, fallback: msgspec.Struct) -> Settings:
    given = {name: value for name, value in msgspec.structs.asdict(fallback).items() if value != ""}
    return msgspec.structs.replace(detector, **{"name": "", **given})


def rungs_of(config: SiteConfig, models: Path, faint_from: float | None = None) -> list[Rung]:
    """The steps of a leaf's ladder: every engine for the first model, then every engine for the next. `faint_from` is as in
    `agents.inference.detector.load`.

    Raises
    ------
    InvalidLabels
        If what must be covered in pictures is a class that one of the models does not know.
    """
    watch = watch_of(config.redact)
    for settings in models_of(config.detector):
        try:
            labels = chain.from_iterable(labels_of(settings))
        except InvalidLabels:
            continue  # loading the model will say so
        check_watch(watch, settings.name or name_of(settings), labels)
    return [
        Rung(
            label=f"{settings.name or name_of(settings)} on {engine}",
            model=number,
            load=_loader(settings, msgspec.structs.replace(config.engine, prefer=(engine,)), models, watch, faint_from),
            files=tuple(_files(settings, models)),
        )
        for number, settings in enumerate(models_of(config.detector))
        for engine in dict.fromkeys(config.engine.prefer)
    ]


def _loader(settings: Settings, engine: Engine, models: Path, watch: Watch | None, faint_from: float | None) -> Callable[[], Detector]:
    def ready() -> Detector:
        detector = load(settings, engine, models, watch, faint_from)
        detector.warm_up()
        return detector

    return ready


def _files(settings: Settings, models: Path) -> Iterable[Path]:
    if settings.labels:
        yield Path(settings.labels)
    if settings.model != store.OWN_MODEL:
        yield Path(settings.model)
        return
    for side in settings.sizes:
        yield from store.files(models, side, settings.quantized)
