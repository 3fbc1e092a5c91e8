"""What a harness is: a name, seeds, and a function of bytes that raises nothing as long as the law of one decoder holds.

The law: a decoder gives a value that can be written and read again, or raises the error that it documents; never another one, never for
longer than a second, never with memory without a bound. A new decoder is put under it by one line: `@harness("name", seeds)`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

LIMIT_S = 1.0  # of processor time for one input
GAP = b"\xfa\xce\x0f\xf5"  # between the parts of an input, for decoders that take several

Check = Callable[[bytes], object]
C = TypeVar("C", bound=Check)


class Broken(AssertionError):
    """A decoder broke its law; the message says how."""


class Harness(NamedTuple):
    """One decoder under its law. `seeds` gives valid and nasty inputs to begin from; `cost` is about how many milliseconds one costs."""

    name: str
    check: Check
    seeds: Callable[[], Iterable[bytes]]
    cost: float

    def run(self, data: bytes, *, limit_s: float = LIMIT_S) -> None:
        """Give it one input; raises `Broken`, or whatever the decoder raised against its law."""
        took_s = self._took_s(data)
        if (
            took_s > limit_s and (took_s := min(took_s, self._took_s(data))) > limit_s
        ):  # a machine may be slow for a moment, an input always
            raise Broken(f"it took {took_s:.1f} s of processor time: expected at most {limit_s:g} s")

    def _took_s(self, data: bytes) -> float:
        started = time.process_time()
        self.check(data)
        return time.process_time() - started


REGISTRY: dict[str, Harness] = {}


def harness(name: str, seeds: Iterable[bytes] | Callable[[], Iterable[bytes]], *, cost: float = 0.05) -> Callable[[C], C]:
    """Register a function of bytes as a harness."""

    def register(check: C) -> C:
        if name in REGISTRY:
            raise ValueError(f"there is a harness {name} already")
        REGISTRY[name] = Harness(name, check, seeds if callable(seeds) else lambda: seeds, cost)
        return check

    return register


def parts(data: bytes, count: int) -> list[bytes]:
    """An input taken apart at `GAP`; parts that are missing are empty."""
    found = data.split(GAP, count - 1)
    return found + [b""] * (count - len(found))


def text_of(data: bytes) -> str:
    """Bytes as text that a decoder of text may meet, halves of surrogate pairs included."""
    return data.decode(errors="surrogateescape")


def headers_of(data: bytes) -> list[tuple[str, bytes | None]]:
    r"""Kafka headers written as `name \x02 value`, with `\x01` between them; without `\x02` a header has no value."""
    found: list[tuple[str, bytes | None]] = []
    for item in data.split(b"\x01") if data else ():
        name, gap, value = item.partition(b"\x02")
        found.append((name.decode(errors="replace"), value if gap else None))
    return found


def written_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """The opposite of `headers_of`, for seeds."""
    return b"\x01".join(name.encode() + (b"" if value is None else b"\x02" + value) for name, value in headers)


def must(condition: object, broken: str) -> None:
    """Raise `Broken` unless a condition holds."""
    if not condition:
        raise Broken(broken)


@contextlib.contextmanager
def refusing(*documented: type[BaseException]) -> Iterator[None]:
    """Within it a decoder may refuse what it is given, by the errors that it documents."""
    try:
        yield
    except documented as error:
        must(isinstance(str(error), str), "an error that cannot be shown")
