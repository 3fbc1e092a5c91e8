"""OpenVINO as an engine, from its own package. It runs on x86 of any make; its precision is pinned, because its default may be bfloat16."""

from __future__ import annotations

import importlib
import queue
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.inference.network import Network
from agents.inference.ort_engine import Unavailable


class OpenVinoEngine:
    """One compiled model with a request for each caller that may be in it at a time; a further caller waits for a free one."""

    def __init__(self, network: Network, side: int, threads: int, callers: int) -> None:
        """Raises `Unavailable` if OpenVINO is not installed or cannot load the network."""
        try:
            openvino = importlib.import_module("openvino")
        except ImportError as error:
            raise Unavailable(f"OpenVINO is not installed ({error}): pip install 'headwater[openvino]'") from None
        core = openvino.Core()
        if "CPU" not in core.available_devices:
            raise Unavailable("OpenVINO finds no CPU that it supports")
        try:
            model = core.read_model(network.path)
            model.reshape({port.name: list(network.fixed_shape(port, side)) for port in network.inputs})
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads * callers,
                "NUM_STREAMS": callers,
                "PERFORMANCE_HINT": "LATENCY",
            }
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            last_line = str(error).strip().rpartition("\n")[2]
            raise Unavailable(f"OpenVINO {openvino.__version__} cannot load {network.path.name}: {last_line}") from error
        self._outputs = [port.name for port in network.outputs]
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(callers):
            self._free.put(compiled.create_infer_request())
        self.description = f"OpenVINO {openvino.__version__}, CPU"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        request = self._free.get()
        try:
            results = request.infer(dict(feeds))
            return [np.array(results[name]) for name in self._outputs]  # copies: the request's own buffers are used again
        finally:
            self._free.put(request)
