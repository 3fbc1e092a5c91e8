"""The comparison as a person reads it: tables for a terminal, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.bench.cascade.intervals import Interval
from infra.bench.cascade.report import KINDS, Kind, Report, Row
from infra.bench.cascade.runs import LEAF, REGION
from infra.text import shown

_TITLES = {"joined": "Joined results: what is believed in the end", "instant": "Instant answers: what the leaf says as the frame comes"}
_HEADINGS = (
    "", "AP50", "AP50-95", "F1", "ECE", "F, %", "kB", "of B0, %", "AP50 to random", "same memory", "AP50 to uniform", "of the gap, %",
)  # fmt: skip


def tables(found: Report) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for kind in KINDS:
        table = Table(
            title=_TITLES[kind], title_justify="left", title_style="bold", box=None, padding=(0, 1), header_style="dim", pad_edge=False
        )
        for heading in _HEADINGS:
            table.add_column(heading, justify="right" if heading else "left")
        for row in _ordered(found.rows, kind):
            table.add_row(*(Text(cell) for cell in _cells(row)), style="dim" if row.policy in (LEAF, REGION) else "")
        parts += [table, Text()]
    parts += [Text(line, style="dim") for line in _basis(found)]
    return Group(*parts)


def markdown(found: Report) -> str:
    """For a file."""
    lines = []
    for kind in KINDS:
        lines += [f"**{_TITLES[kind]}**", "", _line(_HEADINGS), _line("---:" if heading else "---" for heading in _HEADINGS)]
        lines += [_line(_cells(row)) for row in _ordered(found.rows, kind)] + [""]
    lines += [f"- {_escaped(line)}" for line in _basis(found)]
    return "\n".join(lines) + "\n"


def _ordered(rows: Sequence[Row], kind: Kind) -> list[Row]:
    """The leaf and the region first, then by budget; within a budget and setting by AP50."""
    return sorted(
        (row for row in rows if row.kind == kind),
        key=lambda row: (
            (LEAF, REGION).index(row.policy) if row.policy in (LEAF, REGION) else 2,
            row.budget_share if row.budget_share is not None else 2.0,
            row.setting,
            row.ap50 if row.ap50 is not None else -1.0,
        ),
    )


def _cells(row: Row) -> list[str]:
    seeds = f" ({row.seeds} seeds)" if row.seeds > 1 else ""
    least_and_greatest = f" ({_three(row.ap50_range[0])}–{_three(row.ap50_range[1])})" if row.ap50_range else ""
    return [
        shown(row.name + seeds + (" *" if row.spends_more else "")),
        _three(row.ap50) + least_and_greatest,
        _three(row.ap50_95),
        _three(row.f1),
        _three(row.calibration_error),
        f"{row.cost.inferred_share * 100:.1f}",
        f"{row.cost.bytes / 1000:,.0f}",
        "" if row.cost.baseline_share is None else f"{row.cost.baseline_share * 100:.2f}",
        _difference(row.to_plain),
        _difference(row.to_random) if row.setting else "",
        _difference(row.to_uniform),
        "" if row.policy in (LEAF, REGION) else _share(row.gap_closed),
    ]


def _basis(found: Report) -> Iterable[str]:
    basis, where = found.basis, found.machine
    first = f" from frame {basis.scored_from + 1} on" if basis.scored_from else ""
    yield shown(
        f"{basis.video}, {basis.frames} frames at {basis.fps:g} a second; {basis.scored_frames} scored{first}, with {basis.truths} truths "
        f"of {', '.join(basis.labels) or 'no label'}; truths: {basis.origin}"
    )
    yield from map(shown, basis.notes)
    for row in found.rows:
        if row.policy == REGION and row.kind == "joined" and row.to_leaf is not None and not row.to_leaf.above_zero:
            said = "worse than" if row.to_leaf.below_zero else "not certainly better than"
            yield f"here the region is {said} the leaf alone: AP50 {_difference(row.to_leaf)}; there is no gap to close"
    yield (
        f"intervals of {basis.level:.0%}: paired circular block bootstrap over frames, {basis.resamples} resamples of {basis.blocks} "
        f"blocks of {basis.block_s:g} s; a difference whose interval holds 0 may be chance"
    )
    yield (
        f"F: share of frames that the region inferred; B0: every frame as full-size JPEG q90, {basis.baseline_bytes / 1e6:,.1f} MB; bytes "
        f"of all lanes; F1 at a score of {basis.operating_score:g}; ECE: calibration error"
    )
    yield "to random: that choice without memory, the leaf's own answers beside the region's; same memory: with that of the row"
    if any(row.spends_more for row in found.rows):
        yield "*: it inferred over 2 % more frames than random or uniform choice"
    if facts := "; ".join(f"{name}: {fact}" for name, fact in basis.facts.items()):
        yield shown(facts)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield shown(
        f"{where.processor}, {where.cores} cores, {where.memory_bytes / 2**30:.0f} GiB, {where.system}, Python {where.python}, load before "
        f"{where.load_before:g}; {versions}"
    )


def _three(value: float | None) -> str:
    """Three digits, as papers write average precision: .123."""
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def _signed(value: float) -> str:
    text = _three(abs(value))
    return f"{'-' if value < 0 and text.strip('.0') else '+'}{text}"


def _difference(found: Interval | None) -> str:
    return "" if found is None else f"{_signed(found.estimate)} ({_signed(found.low)} to {_signed(found.high)})"


def _share(found: Interval | None) -> str:
    return "" if found is None else f"{found.estimate * 100:.0f} ({found.low * 100:.0f} to {found.high * 100:.0f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
