"""True labels of a video from a file, in the format of MOTChallenge or of COCO; which of the two is seen from what is in it."""

from __future__ import annotations

from pathlib import Path

from infra.bench.cascade import coco, motchallenge
from infra.bench.cascade.truths import Truths, UnusableLabels, Video

MAX_BYTES = 256 << 20


def read_labels(path: Path, video: Video, *, first: int | None = None, min_visibility: float = 0.0) -> Truths:
    """The truth about each frame of a video. Frames that the labels do not cover are not known, and so are never scored.

    Parameters
    ----------
    first
        The number that the file gives to the video's first frame. None: 1 in MOTChallenge; in COCO as `coco.py` says.
    min_visibility
        Boxes of which a smaller share can be seen are ignored (MOTChallenge only).

    Raises
    ------
    UnusableLabels
        If the file cannot be read, or is not what it should be.
    """
    data = _content(path)
    if data.lstrip()[:1] in (b"{", b"["):
        return coco.parse(data, video, where=str(path), first=first)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UnusableLabels(f"{path} is not text: expected labels as MOTChallenge's gt.txt or as COCO's JSON") from None
    return motchallenge.parse(text, video, where=str(path), first=1 if first is None else first, min_visibility=min_visibility)


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise UnusableLabels(f"{path} is a folder: name the file in it, in MOTChallenge {path / 'gt' / 'gt.txt'}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UnusableLabels(f"{path}: there is no such file") from None
    except OSError as error:
        raise UnusableLabels(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise UnusableLabels(f"{path} has more than {MAX_BYTES >> 20} MB: keep the labels of this video only, and of COCO boxes no masks")
    if not data.strip():
        raise UnusableLabels(f"{path} is empty: expected labels as MOTChallenge's gt.txt or as COCO's JSON")
    return data.removeprefix(b"\xef\xbb\xbf")
