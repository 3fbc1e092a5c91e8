"""Makes the files of Headwater's own model that a detector's settings need: converted once, made int8 for each input size that wants it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from agents.inference.nanodet import COLOURS
from agents.inference.tensors import Pixels, squeeze
from agents.models import store
from agents.models.nanodet import INPUT, convert
from agents.models.quantize import quantize
from schemas.config import Detector

QUANTIZED_OPERATORS = ("Conv",)


class Sources(NamedTuple):
    """What the model is made of."""

    graph_json: Path
    weights_bin: Path
    frames: Callable[[], Sequence[Pixels]]  # BGR pictures to calibrate int8 on; asked for only when needed


def missing(detector: Detector, folder: Path) -> tuple[int, ...]:
    """The input sides of a detector whose files have still to be made; none for a model of the user's own."""
    if detector.model != store.OWN_MODEL:
        return ()
    sides = []
    for side in dict.fromkeys(detector.sizes):
        try:
            store.find(folder, side, detector.quantized)
        except store.ModelNotPrepared:
            sides.append(side)
    return tuple(sides)


def prepare(detector: Detector, folder: Path, sources: Sources, say: Callable[[str], None] = lambda _: None) -> list[store.Entry]:
    """Make what is `missing` and put it into the folder; returns what was made.

    Parameters
    ----------
    say
        Told what is being done, one short line a step.

    Raises
    ------
    nanodet.ConversionFailed
        If the sources are not NanoDet-g's.
    flavours.WrongRuntime
        If int8 is wanted, and not exactly one ONNX Runtime is installed.
    """
    sides = missing(detector, folder)
    if not sides:
        return []
    made = []
    full = Detector(sizes=detector.sizes, quantized=False)
    if missing(full, folder):
        say("converting nanodet-g to ONNX")
        with tempfile.TemporaryDirectory(prefix="headwater-", dir=_made(folder)) as work:
            target = Path(work) / "model.onnx"
            onnx.save(convert(sources.graph_json, sources.weights_bin), target)
            made.append(store.put(folder, target, "fp32", 0, f"onnx {onnx.__version__}"))
    if not detector.quantized:
        return made
    source, _ = store.find(folder, sides[0], quantized=False)
    frames = sources.frames()
    for side in sides:
        say(f"quantizing nanodet-g for {side} x {side} on {len(frames)} frames")
        with tempfile.TemporaryDirectory(prefix="headwater-", dir=_made(folder)) as work:
            target = Path(work) / "model.onnx"
            tensors = (squeeze(frame, side, COLOURS).tensor for frame in frames)
            version = quantize(source, target, INPUT, tensors, QUANTIZED_OPERATORS)
            made.append(store.put(folder, target, "int8", side, f"onnx {onnx.__version__}, onnxruntime {version}"))
    return made


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
