"""Models as the command line names them: `nanodet-g@224:int8`, `model.onnx@640`, or a site's file, whose detector is meant."""

from __future__ import annotations

import os
import re
from itertools import combinations
from pathlib import Path

import msgspec

from schemas.config import Detector, InvalidConfig, parse
from schemas.errors import Fault
from schemas.faults import faults

_SPEC = re.compile(r"(?P<model>.+?)(?:@(?P<sizes>\d+(?:\+\d+)*))?(?::(?P<form>int8|fp32))?\Z")
_SMALLEST, _LARGEST = 160, 640
LADDER = (224, 320, 416)  # input sides that our own model's choices are made of


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


def choices(leaf: Detector) -> list[Detector]:
    """The leaf's detector as it is configured, and those at other sets of input sides that it may choose: each of `LADDER` and each pair.
    A model that takes one input size has no other."""
    own = Detector().model
    if leaf.model != own:
        return [leaf]
    sides = sorted({*LADDER, *leaf.sizes})
    sets = [leaf.sizes, *((side,) for side in sides), *combinations(sides, 2)]
    return [msgspec.structs.replace(leaf, sizes=each) for each in dict.fromkeys(sets)]


def pixels(sizes: tuple[int, ...]) -> float:
    """What a look costs, in pixels of input: the time of a look grows with them, on every machine alike."""
    return float(sum(side * side for side in sizes))
