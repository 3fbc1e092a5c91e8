"""Harnesses on pictures: JPEG decoding at several sides, the whole of a look, evidence, and images that producers read."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from agents.cascade.evidence import encode_frame
from agents.inference.images import MAX_PIXELS, UndecodableImage, decode
from agents.region import InvalidEvidence, check_evidence
from infra.faults.fuzz.harness import GAP, harness, headers_of, must, parts, refusing, written_headers
from schemas.envelope import InvalidEnvelope
from schemas.identity import content_digest
from schemas.messages import Asked, Escalation, Reason
from schemas.records import InvalidRecord
from streams.outputs import ESCALATION_HEADER, escalation_of
from streams.production import pictures
from streams.production.images import ImageFolder
from streams.production.pictures import CaptureFailed, Look, jpeg_size

SIDES = (1, 32, 224, 512, 5000)
LARGE = 4_000_000  # pixels, beyond which one side is enough


def jpegs() -> list[bytes]:
    """Small JPEGs of many kinds, some of them broken."""
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    pixels = np.stack([across * 2, down * 3, (across ^ down) * 2], axis=2).astype(np.uint8)
    found = [
        bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=70, colorspace="BGR", colorsubsampling=kind))
        for kind in ("444", "422", "420", "440")
    ]
    found.append(
        bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), quality=70, colorspace="GRAY", colorsubsampling="Gray"))
    )
    for options in ((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)):
        found.append(bytes(cv2.imencode(".jpg", pixels, options)[1]))
    found.append(bytes(cv2.imencode(".jpg", pixels[:1, :1])[1]))
    whole = found[0]
    at = whole.index(b"\xff\xc0") + 5  # height and width
    found += [
        whole[: len(whole) // 2],
        whole[:-2],
        whole + b"\0" * 100,
        whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :],
        whole[:at] + b"\x1f\x40\x1f\x40" + whole[at + 4 :],  # 8000 x 8000, the largest that is decoded
        whole[:at] + b"\0\0\0\0" + whole[at + 4 :],
        b"\xff\xd8\xff",
        b"\xff\xd8",
    ]
    return found


@harness("jpeg", jpegs, cost=0.4)
def jpeg(data: bytes) -> None:
    width, height = jpeg_size(data)
    for side in SIDES if width * height < LARGE else SIDES[2:3]:
        with refusing(UndecodableImage):
            image = decode(data, side)
            height, width, channels = image.pixels.shape
            must(channels == 3 and image.pixels.dtype == np.uint8, f"pixels of shape {image.pixels.shape}")
            must(0 < image.width * image.height <= MAX_PIXELS, f"{image.width} x {image.height} pixels")
            must(min(height, width) >= min(side, image.width, image.height), "smaller than asked")
            must((decode(data, side).pixels == image.pixels).all(), "decoded again it differs")


@harness("evidence-encoding", jpegs, cost=1.0)
def evidence_encoding(data: bytes) -> None:
    with refusing(UndecodableImage):
        encoded = encode_frame(data, side=160, quality=40)
        must(decode(encoded, 160).pixels.size, "what is sent as evidence cannot be read")


@functools.cache
def detector() -> Any:
    """The leaf's own detector; its model is fetched and made if it is not there."""
    from agents.inference.detector import load
    from infra.assets.models import ready_models
    from schemas.config import Detector, Engine

    settings = Detector()
    return load(settings, Engine(), ready_models([settings]))


@harness("look", jpegs, cost=12.0)
def look(data: bytes) -> None:
    with refusing(UndecodableImage):
        seen = detector().look(data)
        must(detector().look(data).detections == seen.detections, "seen again it differs")


def _evidence() -> Iterable[bytes]:
    from infra.faults.fuzz.envelopes import ENVELOPE, NOON

    for number, picture in enumerate(jpegs()):
        asked = Escalation(
            id=f"esc-{number}",
            source="cam-1",
            site="leaf-1",
            reason=Reason.UNCERTAIN,
            records=(Asked(id=f"cam-1/e1/{number}", captured_at=NOON),),
            evidence=content_digest(picture),
            content_type="image/jpeg",
            deadline_ms=1000,
            ttl_s=60.0,
        )
        yield GAP.join((picture, written_headers([*ENVELOPE.to_headers(), (ESCALATION_HEADER, asked.to_bytes())])))
        yield asked.to_bytes()


@harness("evidence", _evidence, cost=0.5)
def evidence(data: bytes) -> None:
    value, pairs = parts(data, 2)
    with refusing(InvalidRecord, InvalidEnvelope, InvalidEvidence, UndecodableImage):
        asked = escalation_of(list(headers_of(pairs)))
        decode(check_evidence(value, asked), 512)
    with refusing(InvalidRecord, InvalidEvidence):
        check_evidence(value, Escalation.from_bytes(value))


def _images() -> list[bytes]:
    pixels = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)
    return [*jpegs(), *(bytes(cv2.imencode(kind, pixels)[1]) for kind in (".png", ".bmp", ".webp", ".tiff", ".ppm"))]


@functools.cache
def scratch() -> Path:
    """A folder in memory, for decoders that read files."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return Path(tempfile.mkdtemp(prefix="headwater-fuzz-", dir=shared if shared.is_dir() else None))


@harness("image-folder", _images, cost=8.0)
def image_folder(data: bytes) -> None:
    folder = scratch() / "images"
    folder.mkdir(exist_ok=True)
    (folder / "one.png").write_bytes(data)
    large = int(np.prod(jpeg_size(data))) > LARGE
    for width in (32,) if large else (None, 32):
        with refusing(CaptureFailed):
            for picture in ImageFolder(folder, Look(width=width)).pictures():
                must(picture.jpeg, "an empty picture")
    if not large:
        pictures.decode(data)
