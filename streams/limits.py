"""The limit of dead letters (step 7): a share of recent records, kept over restarts, so that no broken model buries a topic bit by bit."""

from __future__ import annotations

import struct

from schemas.errors import Fault

_HEAD = struct.Struct("<IIII")  # a mark, where the next record goes, how many are known, whether the limit was passed
_MARK = 0x4C494D31
_PROBES = 5  # failures that a worker has left which starts again after the limit was passed


class TooManyDeadLetters(Fault, RuntimeError):
    """The share of failed records shows that the code or the model is at fault; the agent stops."""


class DeadLetterLimit:
    """At most `share` of the last `window` records, once at least `least` of them failed.

    What it has counted outlives the process if it is given a memory that does (the journal's). A worker that starts again goes on counting.
    After the limit was passed it has few failures left: they stop it again at once, unless what it finishes meanwhile shows that the
    fault is mended; a single bad record among good ones does not stop it.

    Parameters
    ----------
    memory
        At least `16 + window` writable bytes.
    """

    def __init__(self, *, share: float = 0.5, window: int = 1000, least: int = 50, memory: memoryview | None = None) -> None:
        self.share, self.window, self.least = share, window, least
        self._memory = memory if memory is not None else memoryview(bytearray(_HEAD.size + window))
        mark, at, known, passed = _HEAD.unpack_from(self._memory)
        if mark != _MARK or at >= window or known > window or len(self._memory) < _HEAD.size + window:
            at = known = passed = 0
        self._at, self._known = at, known
        self._bad = sum(self._memory[_HEAD.size : _HEAD.size + known])
        if passed:
            self._start_anew(max(0, least - _PROBES))
        self._keep(False)

    def _start_anew(self, failures: int) -> None:
        self._memory[_HEAD.size : _HEAD.size + failures] = b"\1" * failures
        self._bad = self._known = failures
        self._at = failures % self.window

    def count(self, failed: bool) -> None:
        """Count one record; raises `TooManyDeadLetters`."""
        place = _HEAD.size + self._at
        self._bad += failed - (self._memory[place] if self._known == self.window else 0)
        self._memory[place] = failed
        self._at = (self._at + 1) % self.window
        self._known = min(self.window, self._known + 1)
        passed = failed and self._bad >= self.least and self._bad > self.share * self._known
        self._keep(passed)
        if passed:
            raise TooManyDeadLetters(
                f"{self._bad} of the last {self._known} records failed: the code or the model is at fault, not the records. "
                "See what failed (`headwater dlq list`), mend it and start again; `headwater dlq replay` brings the records back"
            )

    def _keep(self, passed: bool) -> None:
        _HEAD.pack_into(self._memory, 0, _MARK, self._at, self._known, passed)
