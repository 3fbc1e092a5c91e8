"""Who runs the link of a site. Two lose nothing and change no result, but spend twice; so one carries and the others stand by.

The holder's beats are records of a compacted topic at the region. Whoever finds no holder, or one that released the link or has not been
heard for `STALE_S`, writes the generation it has seen plus one; of two that do so at once the greater writer id holds. Who hears of a
greater (generation, writer) than its own stops, and takes over again only when that one falls silent. No clocks are compared: silence is
measured by whoever listens.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas.links import LinkHold

BEAT_S = 3.0
STALE_S = 12.0


class Hold:
    """The pure part: records heard go in, what to do comes out.

    Parameters
    ----------
    me
        This link as it would hold; its generation is not looked at.
    gone
        Whether the process of a record is known to have ended (same machine), so that nobody waits for it.
    """

    def __init__(self, me: LinkHold, gone: Callable[[LinkHold], bool]) -> None:
        self.me, self._gone = me, gone
        self.holder: LinkHold | None = None
        self._heard_s = 0.0
        self._claimed: int | None = None  # generation that was written and not yet heard
        self._claimed_s = 0.0
        self._beat_s = float("-inf")

    @property
    def mine(self) -> bool:
        """Whether this link holds: its own record has been heard, and none greater."""
        return self.holder is not None and self.holder.writer == self.me.writer and not self.holder.released

    def heard(self, record: LinkHold, now: float) -> bool:
        """Take in a record of the topic; True if the holder is another one now."""
        before = self.holder
        if before is not None and (record.generation, record.writer) < (before.generation, before.writer):
            return False
        self.holder, self._heard_s = record, now
        if record.writer == self.me.writer:
            self._claimed = None
        return before is None or (before.writer, before.released) != (record.writer, record.released)

    def due(self, now: float, *, listening: bool) -> LinkHold | None:
        """The record to write now, if any. `listening`: the region answers and the topic was read to its end."""
        if self.mine:
            if now - self._beat_s < BEAT_S:
                return None
            self._beat_s = now
            return self._record(self._generation())
        if not listening:
            self._heard_s = max(self._heard_s, now - STALE_S / 2)  # silence that was not listened to is none
            return None
        holder = self.holder
        if self._claimed is not None and now - self._claimed_s < BEAT_S:
            return None
        if holder is None or holder.released or self._gone(holder) or now - self._heard_s > STALE_S:
            self._claimed, self._claimed_s, self._beat_s = self._generation() + 1, now, now
            return self._record(self._claimed)
        return None

    def release(self) -> LinkHold | None:
        """The record that gives the link up, if it is ours."""
        return self._record(self._generation(), released=True) if self.mine else None

    def _generation(self) -> int:
        return self.holder.generation if self.holder is not None else 0

    def _record(self, generation: int, *, released: bool = False) -> LinkHold:
        return LinkHold(
            site=self.me.site,
            writer=self.me.writer,
            generation=generation,
            host=self.me.host,
            pid=self.me.pid,
            since=self.me.since,
            released=released,
        )
