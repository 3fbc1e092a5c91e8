"""What the demo needs before it starts: a video, the models, and what this machine can carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from agents.sizes import choices
from agents.steps import models_of
from infra import assets
from infra.assets.models import ready_models
from infra.demo.machine import Measured, measure
from infra.demo.sites import REGION_SIZES
from schemas.config import Detector
from schemas.errors import Fault
from streams.production.pictures import CaptureFailed


class CannotPrepare(Fault, RuntimeError):
    """Something that the demo needs cannot be had; the message says what, and what to do."""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What was prepared."""

    video: Path
    measured: Measured


def prepare(video: Path | None, *, say: Callable[[str], None]) -> Ready:
    """Fetch, make and measure; raises `CannotPrepare`."""
    if video is not None and not video.is_file():
        raise CannotPrepare(f"there is no video {video}: name a file, or leave --video out to use the demo's own")
    leaf, region = Detector(), Detector(sizes=REGION_SIZES, quantized=False)
    try:
        if video is None:
            (video,) = assets.fetch(assets.VIDEO)
        models = ready_models([*models_of(leaf), *choices(leaf), region])
        say("measuring what this machine can carry")
        return Ready(video=video.resolve(), measured=measure(video, leaf, region, models))
    except (assets.AssetUnavailable, CaptureFailed) as error:
        raise CannotPrepare(str(error)) from None
