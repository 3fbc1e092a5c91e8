"""The models that detectors need, ready in one folder: what is missing is fetched and made, which takes a minute once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from agents.inference.flavours import WrongRuntime
from agents.models.prepare import Sources, missing, prepare
from infra import assets
from infra.kafka import locks
from infra.paths import cache_dir
from schemas.config import Detector

CALIBRATION_FRAMES = 40


def models_folder(cache: Path | None = None) -> Path:
    """Where prepared models are kept."""
    return (cache or cache_dir()) / "models"


def ready_models(detectors: Iterable[Detector], cache: Path | None = None, *, console: Console | None = None) -> Path:
    """Make certain that every model that Headwater prepares itself is there for these detectors; returns the folder for `detector.load`.

    Without a network it works if they are there, or if the assets are in the cache.

    Raises
    ------
    assets.AssetUnavailable
        If something must be fetched and cannot be, or the models cannot be made or kept; the message says why and what to do.
    """
    console = console or Console(stderr=True, highlight=False)
    folder = models_folder(cache)
    wanted = [detector for detector in detectors if missing(detector, folder)]
    if not wanted:
        return folder
    graph_json, weights_bin = assets.fetch(assets.NANODET, cache, console=console)
    video = assets.fetch(assets.VIDEO, cache, console=console)[0] if any(detector.quantized for detector in wanted) else None

    def frames() -> list[NDArray[np.uint8]]:
        assert video is not None, "only int8 asks for frames"
        return video_frames(video, CALIBRATION_FRAMES)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.held(folder / ".lock", timeout_s=assets.LOCK_TIMEOUT_S), console.status("preparing models") as status:

            def say(step: str) -> None:
                status.update(step)
                if not console.is_terminal:
                    console.print(step)

            for detector in wanted:
                prepare(detector, folder, Sources(graph_json, weights_bin, frames), say)
    except locks.Locked:
        raise assets.AssetUnavailable(f"another process has been making models in {folder} for too long: wait for it, or end it") from None
    except OSError as error:
        raise assets.AssetUnavailable(
            f"models cannot be kept in {folder}: {error}. Free it, or set HEADWATER_CACHE to another folder"
        ) from None
    except WrongRuntime as error:
        raise assets.AssetUnavailable(f"models cannot be made: {error}") from None
    return folder


def video_frames(video: Path, count: int) -> list[NDArray[np.uint8]]:
    """That many frames (BGR), spread evenly over a video.

    Raises
    ------
    ValueError
        If it cannot be read as a video.
    """
    capture = cv2.VideoCapture(str(video))
    try:
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        wanted = {round(index * (total - 1) / max(1, count - 1)) for index in range(count)} if total > 0 else set[int]()
        frames: list[Any] = []
        for index in range(total):
            if not capture.grab():
                break
            if index in wanted:
                decoded, frame = capture.retrieve()
                if decoded:
                    frames.append(frame)
    finally:
        capture.release()
    if not frames:
        raise ValueError(f"{video} cannot be read as a video")
    return frames
