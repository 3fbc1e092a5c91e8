"""What the cascade promises of a video, and whether it held: conditions that need no constants of the video."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from infra.bench.cascade.intervals import Interval
from infra.bench.cascade.report import Report, Row
from infra.bench.cascade.runs import ORACLE, RANDOM, REGION, UNIFORM
from infra.bench.report import Goal

JOINED_REACH = {0.10: 0.40, 0.25: 0.65, 0.50: 0.85}
"""Share of the gap that joined results should close, by budget."""
INSTANT_REACH = {0.10: 0.25}
EVERYTHING = "everything"
EVERYTHING_LOSS, EVERYTHING_SHARE = 0.01, 0.025


def goals(found: Report, *, beats: Collection[str], shipped: Collection[str]) -> list[Goal]:
    """Which promises were met.

    Parameters
    ----------
    beats
        Policies that must beat random choice at each budget, by a margin whose interval excludes zero.
    shipped
        Policies that a user can choose: none of them may be below uniform choice, nor below the leaf alone.
    """
    joined = [row for row in found.rows if row.kind == "joined" and row.policy not in (RANDOM, UNIFORM, ORACLE)]
    return [
        *_beat_random([row for row in joined if row.policy in beats]),
        *_not_below([row for row in joined if row.policy in shipped]),
        *_everything(joined),
        *_reach([row for row in found.rows if row.policy in beats]),
    ]


def _beat_random(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        if row.to_plain is not None:
            yield Goal(f"{row.name}: above random choice at the same budget", _said(row.to_plain), row.to_plain.above_zero)
        if row.to_random is not None and row.setting:
            name = f"{row.name}: above random choice at the same budget with the same memory (reach)"
            yield Goal(name, _said(row.to_random), row.to_random.above_zero)


def _not_below(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        if row.to_uniform is not None:
            yield Goal(f"{row.name}: not below uniform choice at the same budget", _said(row.to_uniform), not row.to_uniform.below_zero)
        if row.to_leaf is not None:
            yield Goal(f"{row.name}: not below the leaf alone", _said(row.to_leaf), not row.to_leaf.below_zero)


def _everything(rows: Sequence[Row]) -> Iterator[Goal]:
    region = next((row for row in rows if row.policy == REGION), None)
    for row in rows:
        if row.policy == EVERYTHING and row.ap50 is not None and region is not None and region.ap50 is not None:
            share = row.cost.baseline_share
            yield Goal(
                f"{row.name}: within {EVERYTHING_LOSS:.0%} of the region everywhere at {EVERYTHING_SHARE:.1%} of B0 at most",
                f"AP50 {row.ap50:.3f} of {region.ap50:.3f}, {share or 0:.2%} of B0",
                row.ap50 >= (1 - EVERYTHING_LOSS) * region.ap50 and share is not None and share <= EVERYTHING_SHARE,
            )


def _reach(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        wanted = (JOINED_REACH if row.kind == "joined" else INSTANT_REACH).get(round(row.budget_share or 0.0, 6))
        if wanted is not None and row.gap_closed is not None:
            closed = row.gap_closed
            yield Goal(
                f"{row.name}, {row.kind}: closes {wanted:.0%} of the gap between the leaf and the region (reach)",
                f"{closed.estimate:.0%} ({closed.low:.0%} to {closed.high:.0%})",
                closed.estimate >= wanted,
            )


def _said(found: Interval) -> str:
    return f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
