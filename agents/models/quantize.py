"""Int8 weights and activations for a convolutional network, calibrated on pictures: static quantization, QDQ, a scale for each channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from agents.inference.flavours import load_runtime


def quantize(source: Path, target: Path, input_name: str, tensors: Iterable[NDArray[Any]], operators: Sequence[str]) -> str:
    """Write the int8 form of `source` to `target`; returns the version of the library that made it.

    Parameters
    ----------
    tensors
        Prepared inputs like those that the network will see; the ranges of all activations are their minima and maxima.
    operators
        The ONNX operators that become int8.
    """
    runtime = load_runtime()
    # loaded late: it costs half a second, and only a machine that makes models needs it
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="headwater-", dir=target.parent) as folder:
        cleaned = Path(folder) / "cleaned.onnx"
        quant_pre_process(str(source), str(cleaned), skip_symbolic_shape=True)
        quantize_static(
            str(cleaned),
            str(target),
            _Feeds(input_name, tensors),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    return str(runtime.__version__)


class _Feeds:
    """Tensors in the form that the calibrator asks for (`CalibrationDataReader`)."""

    def __init__(self, name: str, tensors: Iterable[NDArray[Any]]) -> None:
        self._name = name
        self._tensors = iter(tensors)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor}
