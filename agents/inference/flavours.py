"""Which ONNX Runtime is installed. Its flavours all own one folder, so pip lets two of them overwrite each other without a word."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from schemas.errors import Fault

FLAVOURS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
)


class WrongRuntime(Fault, RuntimeError):
    """Not exactly one ONNX Runtime is installed; the message is one line with the command that mends it."""


def installed_flavours() -> list[str]:
    """The distributions that own the `onnxruntime` folder, with their versions, as the environment's metadata tells."""
    found = []
    for name in FLAVOURS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def check_flavours(found: Sequence[str]) -> str:
    """The one that is installed; raises `WrongRuntime` if there is none, or more than one."""
    if not found:
        raise WrongRuntime("no ONNX Runtime is installed: pip install 'headwater[cpu]', or 'headwater[gpu]' where there is an NVIDIA GPU")
    if len(found) > 1:
        names = " ".join(entry.split()[0] for entry in found)
        raise WrongRuntime(
            f"{' and '.join(found)} are installed and overwrite each other: pip uninstall {names}, then pip install one of them again"
        )
    return found[0]


def load_runtime() -> ModuleType:
    """The `onnxruntime` module, once it is certain that one flavour is installed, and whole."""
    flavour = check_flavours(installed_flavours())
    name = flavour.split()[0]
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise WrongRuntime(f"{flavour} does not load ({error}): pip install --force-reinstall {name}") from None
    if not hasattr(runtime, "InferenceSession"):  # the shell that uninstalling a second flavour leaves
        raise WrongRuntime(f"{flavour} is incomplete, as after another flavour was removed: pip install --force-reinstall {name}")
    return runtime
