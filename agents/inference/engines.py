"""What runs a network: ONNX Runtime on TensorRT, CUDA or the CPU, or OpenVINO. Asked for in order; what was got is said aloud.

ONNX Runtime falls back to the CPU without a word when a provider does not load, so what it really uses is read back and compared with what
was asked, and one run on zeros must succeed. What the tensors mean is no matter of this module.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.inference.network import Network, Output, UnusableModel
from agents.inference.openvino_engine import OpenVinoEngine
from agents.inference.ort_engine import OrtEngine, Unavailable
from schemas.config import Engine as Settings
from schemas.errors import Fault

log = logging.getLogger("headwater.engine")


class NoEngine(Fault, RuntimeError):
    """None of the engines that were asked for can run the model; the message says why, for each. `reasons` are these alone."""

    reasons = ""


class EngineFailed(RuntimeError):
    """An engine that was ready could not run the network this time: memory, a lost device. Trying again may help."""


class PassedOver(NamedTuple):
    """An engine that was preferred to the one in use, and why it was not to be had."""

    engine: str
    reason: str


class _Running(Protocol):
    description: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...


class Engine:
    """A network that is loaded and can run, for pictures of one size, one at a time. Several threads may call it at a time.

    Attributes
    ----------
    asked
        The engines in order of preference.
    got
        The one in use.
    passed_over
        Those before it, each with the reason.
    description
        Library, version and device, for people.
    network
        The file, with the names, types and shapes of its inputs and outputs.
    outputs
        Names and shapes of the outputs, as the trial run gave them.
    """

    def __init__(
        self, running: _Running, network: Network, side: int, asked: tuple[str, ...], got: str, passed_over: tuple[PassedOver, ...]
    ) -> None:
        """Runs the network once on zeros; raises `EngineFailed` if that does not work."""
        self._running = running
        self._image = network.image
        self._constants = network.constants(side)
        self.asked = asked
        self.got = got
        self.passed_over = passed_over
        self.description = running.description
        self.network = network
        arrays = self.predict(np.zeros((1, 3, side, side), np.float32))
        self.outputs = tuple(Output(port.name, array.shape, port.operator) for port, array in zip(network.outputs, arrays, strict=True))

    def predict(self, picture: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs, in the order of the network's, for one prepared picture [1, 3, side, side]; raises `EngineFailed`, also for
        outputs that are not numbers: a broken device would else be taken for an empty scene."""
        outputs = self.run({self._image.name: picture.astype(self._image.dtype, copy=False), **self._constants})
        for port, array in zip(self.network.outputs, outputs, strict=True):
            if array.dtype.kind == "f" and array.size and np.isnan(array.min()):  # one pass: a minimum of anything with NaN is NaN
                raise EngineFailed(f"{self.description}: the output {port.name} holds NaN")
        return outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs for all inputs by name; raises `EngineFailed`."""
        try:
            return self._running.run(feeds)
        except Exception as error:  # the libraries' errors share no base class
            raise EngineFailed(f"{self.description}: {_first_line(error)}") from error


def open_engine(network: Network, side: int, settings: Settings) -> Engine:
    """Load a network on the first engine of `settings.prefer` that works, for pictures of `side` x `side`.

    Raises
    ------
    NoEngine
        If none of them is to be had here.
    UnusableModel
        If the file is at fault, not the engine.
    flavours.WrongRuntime
        If not exactly one ONNX Runtime is installed.
    """
    passed_over: list[PassedOver] = []
    for name in settings.prefer:
        try:
            engine = Engine(_start(name, network, side, settings), network, side, tuple(settings.prefer), name, tuple(passed_over))
        except Unavailable as error:
            passed_over.append(PassedOver(name, str(error)))
        except EngineFailed as error:
            if name == settings.prefer[-1]:
                raise UnusableModel(f"{network.path} does not run at {side} x {side}: {error}") from error
            passed_over.append(PassedOver(name, str(error)))
        else:
            _say(engine)
            return engine
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    hint = "" if "cpu" in settings.prefer else '; add "cpu" at the end of engine.prefer to run all the same'
    nothing = NoEngine(f"no engine for {network.path.name} ({reasons}){hint}")
    nothing.reasons = reasons
    raise nothing


def _start(name: str, network: Network, side: int, settings: Settings) -> _Running:
    if name == "openvino":
        return OpenVinoEngine(network, side, settings.threads, settings.workers)
    return OrtEngine(network, side, name, settings.threads)


def _say(engine: Engine) -> None:
    fields = {"model": engine.network.path.name, "asked": ",".join(engine.asked), "got": engine.got, "engine": engine.description}
    if not engine.passed_over:
        log.info("engine ready", extra=fields)
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in engine.passed_over)
    log.warning("engine is not the one asked for first", extra={**fields, "reasons": reasons})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
