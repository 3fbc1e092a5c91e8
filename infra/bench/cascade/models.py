"""Models as the command line names them: `nanodet-g@224:int8`, `model.onnx@640`, or a site's file, whose detector is meant."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from schemas.config import Detector, InvalidConfig, parse
from schemas.errors import Fault
from schemas.faults import faults

_SPEC = re.compile(r"(?P<model>.+?)(?:@(?P<sizes>\d+(?:\+\d+)*))?(?::(?P<form>int8|fp32))?\Z")
_SMALLEST, _LARGEST = 160, 640


class UnknownModel(Fault, ValueError):
    """A model that the command line does not name well; the message says what is expected."""


def detector_of(spec: str) -> Detector:
    """The settings that a name stands for; raises `UnknownModel`."""
    if spec.endswith(".toml"):
        try:
            return parse(Path(spec).read_text(encoding="utf-8"), os.environ, where=spec).detector
        except (OSError, UnicodeDecodeError) as error:
            raise UnknownModel(f"{spec} cannot be read: {getattr(error, 'strerror', None) or error}; name a site's file") from None
        except InvalidConfig as error:
            raise UnknownModel(str(error)) from None
    found = _SPEC.match(spec)
    if found is None:
        raise UnknownModel(f"model {spec!r}: expected such as nanodet-g@224:int8, model.onnx@640 or a site's .toml")
    tree: dict[str, object] = {"model": found["model"]}
    if found["sizes"]:
        tree["sizes"] = [int(side) for side in found["sizes"].split("+")]
    if found["form"]:
        tree["quantized"] = found["form"] == "int8"
    if wrong := [*faults(tree, Detector)]:
        raise UnknownModel(f"model {spec!r}: {'; '.join(wrong)}")
    return msgspec.convert(tree, Detector)
