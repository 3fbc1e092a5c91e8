"""Where to go on in a log that may have been cut: a power cut takes what was not on the disk, and the log may be written on since."""

from __future__ import annotations

from collections.abc import Callable


def go_on(offset: int, epoch: int | None, low: int, high: int, epoch_at: Callable[[int], int | None]) -> int:
    """The offset to go on at in a log that now reaches from `low` to `high`.

    Leader epochs only grow along a log, and a broker that starts again takes a higher one. So what was written after a cut is told by an
    epoch above that of the last record that was read, and where it begins is found by bisection. Without an epoch, a log that ends before
    the offset is read again from `low`, and so is one whose epochs cannot be read.

    Parameters
    ----------
    offset, epoch
        The next offset to read, and the leader epoch of the record before it (None or negative if it is not known).
    epoch_at
        The leader epoch of the first record at or after an offset; None if none was read.

    >>> written = [0] * 80 + [1] * 40  # 100 were read, then the last 20 were lost, and 40 written in their place
    >>> go_on(100, 0, 0, 120, written.__getitem__)
    80
    """
    if epoch is None or epoch < 0:
        return low if offset > high else offset
    if offset <= low:
        return offset
    if offset <= high and ((last := epoch_at(offset - 1)) is None or last <= epoch):
        return offset
    first, end = low, high
    while first < end:
        middle = (first + end) // 2
        found = epoch_at(middle)
        if found is None:
            return low
        if found > epoch:
            end = middle
        else:
            first = middle + 1
    return first
