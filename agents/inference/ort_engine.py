"""ONNX Runtime as an engine: on the CPU, or through its CUDA and TensorRT providers."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from agents.inference.flavours import load_runtime
from agents.inference.network import Network, UnusableModel

PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_ERRORS_ONLY = 3
_SOURCE_LINE = re.compile(r"^/\S+\.cc:\d+ .*\) (?=[A-Z])")  # the place in the runtime's source that some of its messages begin with


class Unavailable(Exception):
    """The engine cannot be had on this machine; the message says why."""


class OrtEngine:
    """One session. `run` may be called from several threads at a time, and releases the interpreter's lock."""

    def __init__(self, network: Network, side: int, name: str, threads: int) -> None:
        """Raises `Unavailable` if this provider is not to be had, `UnusableModel` if the file is at fault."""
        runtime = load_runtime()
        provider = PROVIDERS[name]
        if provider not in runtime.get_available_providers():
            fix = " (it comes with 'headwater[gpu]')" if name != "cpu" else ""
            raise Unavailable(f"the installed ONNX Runtime {runtime.__version__} has no {provider}{fix}")
        if name != "cpu":
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find, and standard output is for answers
                runtime.preload_dlls()  # CUDA's libraries from pip, where they are
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the fall-back is found out and reported below
                self._session = runtime.InferenceSession(
                    str(network.path), _options(runtime, network, side, threads), providers=_providers(name, network), enable_fallback=0
                )
        except Exception as error:  # the runtime's errors share no base class; each is passed on with its text
            first_line = _SOURCE_LINE.sub("", str(error).partition("\n")[0])
            if name == "cpu":
                raise UnusableModel(f"{network.path} does not load in ONNX Runtime {runtime.__version__}: {first_line}") from error
            raise Unavailable(first_line) from error
        if self._session.get_providers()[0] != provider:
            raise Unavailable(f"{provider} did not load: is there a GPU, and do its driver and CUDA libraries fit?")
        self._outputs = [port.name for port in network.outputs]
        self.description = f"ONNX Runtime {runtime.__version__}, {provider}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(self._outputs, dict(feeds))
        return outputs


def _options(runtime: Any, network: Network, side: int, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # a spinning thread takes the core from the next frame's decoding
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for name, length in network.fixed_dimensions(side).items():
        options.add_free_dimension_override_by_name(name, length)
    return options


def _providers(name: str, network: Network) -> list[Any]:
    if name == "cpu":
        return ["CPUExecutionProvider"]
    if name == "cuda":
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    options: dict[str, Any] = {}
    folder = network.path.parent
    if os.access(folder, os.W_OK):  # building a TensorRT engine takes minutes, so it is kept beside the model
        options = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder / "tensorrt"), "trt_timing_cache_enable": True}
    return [("TensorrtExecutionProvider", options), "CUDAExecutionProvider", "CPUExecutionProvider"]
