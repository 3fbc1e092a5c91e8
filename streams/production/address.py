"""What a person names as a source (a file, a URL, a camera index), how it is shown without its secrets, and its default name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from schemas.identity import FOREIGN

Kind = Literal["file", "url", "camera"]

SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "rtp", "udp", "tcp"})

_scheme = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_word = re.compile(r"[^\s'\"]+")
_ENDS = ":,;.)"  # what ends the sentence that a URL stands in
HIDDEN = "***"
MAX_INDEX_DIGITS = 4  # of a camera's index; a longer number is a file's name, such as a date


class InvalidAddress(ValueError):
    """A source that cannot be one; the message says what was expected."""


def kind_of(address: str) -> Kind:
    """Tell a camera index (digits), a URL and a file apart; raises `InvalidAddress` for a URL of a kind that is not read."""
    if address.isascii() and address.isdigit() and len(address) <= MAX_INDEX_DIGITS:
        return "camera"
    match = _scheme.match(address)
    if match is None:
        return "file"
    if match[1].lower() not in SCHEMES:
        raise InvalidAddress(f"{redact(address)}: {match[1]}:// is not read; expected one of {', '.join(sorted(SCHEMES))}, or a file")
    return "url"


def redact(text: str, address: str = "") -> str:
    """Text fit to be shown: user names, passwords and queries of URLs are hidden, wherever in the text they stand.

    Parameters
    ----------
    address
        The URL that the text may be about: its secrets are hidden even where they stand outside a URL.

    >>> redact("Connection refused: 'rtsp://joe:s3cret@cam/1?token=x'")
    "Connection refused: 'rtsp://***@cam/1?***'"
    """
    if address and _scheme.match(address):
        text = text.replace(address, redact(address))
        for secret in sorted(_secrets(address), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
    return _word.sub(lambda word: _hidden(word[0]), text) if "://" in text else text


def _hidden(word: str) -> str:
    """A word of a text with the secrets of the URL in it, if it is one, hidden. Not by one pattern: on long words that takes hours."""
    scheme, colon, rest = word.partition("://")
    if not colon:
        return word
    _, at, place = rest.rpartition("@")  # the last one: a password may hold '@', ':' and '/'
    where, mark, query = _cut(place)
    told = query.rstrip(_ENDS)
    query = HIDDEN + query[len(told) :] if told else query
    return f"{scheme}://{HIDDEN if at else ''}{at}{where}{mark}{query}"


def _cut(place: str) -> tuple[str, str, str]:
    """A URL's place, the first `?` or `#`, and what follows it."""
    at = min((found for mark in "?#" if (found := place.find(mark)) >= 0), default=len(place))
    return place[:at], place[at : at + 1], place[at + 1 :]


def _secrets(address: str) -> set[str]:
    """The password, and the query, of a URL as they may appear in an error message."""
    rest = address.partition("://")[2]
    userinfo, at, place = rest.rpartition("@")
    password = userinfo.partition(":")[2] if at else ""
    query = (place if at else rest).partition("?")[2]
    found = {password, unquote(password), query, unquote(query)}
    return {secret for secret in found if len(secret) >= 3}  # a shorter one would blot out ordinary words


def default_name(address: str) -> str:
    """The name of a source whose user gave none: of the file, of the camera's index, or of the URL's host and path.

    >>> default_name("rtsp://joe:s3cret@10.0.0.7:554/stream1?token=x"), default_name("/videos/Gate 3.mp4"), default_name("0")
    ('10.0.0.7-stream1', 'Gate-3', 'camera-0')
    """
    kind = kind_of(address)
    if kind == "camera":
        return f"camera-{int(address)}"
    if kind == "file":
        text = Path(address).stem
    else:
        scheme, _, rest = address.partition("://")
        try:
            parts = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")
            text = f"{parts.hostname or ''}{parts.path}"
        except ValueError:
            text = ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64]
    return name if name and name != FOREIGN else "video"


def unique(names: list[str]) -> list[str]:
    """Names made different: the second `gate` becomes `gate-2`.

    >>> unique(["gate", "gate", "hall"])
    ['gate', 'gate-2', 'hall']
    """
    taken: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name[: 63 - len(str(number))]}-{number}"
        taken.append(candidate)
    return taken
