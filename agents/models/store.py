"""The prepared models in one folder: an ONNX file each, and a line beside it that says what it is and what its bytes must hash to.

A file appears whole or not at all, and one whose bytes differ from its digest is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from schemas.errors import Fault

OWN_MODEL = "nanodet-g"
RECIPE = 1  # counts changes of how the files are made; a new one makes them anew
Precision = Literal["fp32", "int8"]


class ModelNotPrepared(Fault, LookupError):
    """A model that Headwater makes itself is not in the folder yet, or its file is damaged; the message names the command that makes it."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one prepared model."""

    model: str
    precision: Precision
    side: int  # the input side that an int8 model was calibrated for; 0: any multiple of 32
    recipe: int
    sha256: str
    made_with: str
    file: str

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision}" + (f" {self.side}" if self.side else "")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path, side: int, quantized: bool) -> tuple[Path, str]:
    """The file of our own model for an input side, and its digest. Weights of full precision serve every side.

    Raises
    ------
    ModelNotPrepared
        If it is not there, was made by another recipe, or is not what was stored.
    """
    precision: Precision = "int8" if quantized else "fp32"
    path = folder / _file_name(precision, side if quantized else 0)
    fix = f"headwater models prepare --size {side}" + ("" if quantized else " --fp32")
    try:
        entry = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Entry)
        digest = file_digest(path)
    except (OSError, msgspec.MsgspecError):
        raise ModelNotPrepared(f"{OWN_MODEL} ({precision}, {side} pixels) is not prepared in {folder}: {fix}") from None
    if entry.sha256 != digest:
        raise ModelNotPrepared(f"{path} is damaged (its digest is not the one that was stored): {fix}")
    return path, digest


def files(folder: Path, side: int, quantized: bool) -> tuple[Path, Path]:
    """The files that `find` reads for an input side, whether or not they are there."""
    path = folder / _file_name("int8" if quantized else "fp32", side if quantized else 0)
    return path, path.with_suffix(".json")


def put(folder: Path, content: Path, precision: Precision, side: int, made_with: str) -> Entry:
    """Move a finished file into the folder, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = Entry(
        model=OWN_MODEL,
        precision=precision,
        side=side,
        recipe=RECIPE,
        sha256=file_digest(content),
        made_with=made_with,
        file=_file_name(precision, side),
    )
    target = folder / entry.file
    with _replacing(target.with_suffix(".json")) as line:
        line.write_bytes(msgspec.json.encode(entry))
        content.chmod(0o644)  # onnx writes for its owner only; a container's user must read it too
        content.replace(target)
    return entry


def entries(folder: Path) -> list[Entry]:
    """What is in the folder, by name. Files that are not ours are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Entry))
    return found


def _file_name(precision: Precision, side: int) -> str:
    return f"{OWN_MODEL}-r{RECIPE}-{precision}" + (f"-{side}" if side else "") + ".onnx"


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside the target that takes the target's place if all goes well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
