"""`headwater accuracy`: how accurate the answers to each source are, as the audit sample shows it."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.table import Table
from rich.text import Text

from infra.cli.clusters import clients_of, explained
from infra.cli.common import CommandFailed, config_option, json_option, load_config, out, print_json
from infra.cli.lines import clean
from schemas.accuracy import Accuracy

_MEASURES = ("precision", "recall", "f1")


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--models", "every", is_flag=True, help="Every model that has answered a source, not only the one that did so last.")
@config_option
@json_option
def accuracy(sources: tuple[str, ...], every: bool, config_path: str, as_json: bool) -> int:
    """Show how accurate a leaf's answers are: measured on frames that the region judged whatever the leaf thought of them.

    `leaf` is what the leaf answers at once, `results` what readers have in the end. Each share is shown with the interval that it lies in
    with a probability of 95 %. They are against the region's answers, which are not the truth, or against labels where a hundred are known
    (`headwater label frames`). A source of which too few frames were judged has no figures yet (100 at least; `audit.rate` says how many
    are). `sure from` is the confidence from which on answers are final, so that no more than `audit.risk` of them are other ones there.

    \b
    Examples:
      headwater accuracy
      headwater accuracy cam-1 --models
      headwater accuracy --json | jq '.[] | {source, results_f1, results_f1_low, results_f1_high}'
    """
    from schemas.messages import Tier
    from schemas.records import InvalidRecord
    from streams.restore import to_end
    from streams.topology import Topology

    config = load_config(config_path)
    if config.tier_name is not Tier.LEAF:
        raise CommandFailed(f"{config.name} is a {config.tier}: accuracy is measured at the leaves, name a leaf's file with --config")
    topic = Topology(config).topic("accuracy")
    latest: dict[tuple[str, str], Accuracy] = {}
    with explained():
        for record in to_end(clients_of(config.kafka, "accuracy"), [(topic.name, partition) for partition in range(topic.partitions)]):
            try:
                found = Accuracy.from_bytes(record.value())
            except InvalidRecord as error:
                raise CommandFailed(f"{topic.name} holds what this version cannot read: {error}") from None
            latest[found.source, found.model_digest] = found
    chosen = _chosen(latest.values(), sources, every)
    if strange := sorted(set(sources) - {each.source for each in chosen}):
        raise CommandFailed(f"nothing is known here of the accuracy of {', '.join(strange)}: {_known(latest.values())}")
    if as_json:
        print_json(chosen)
    elif chosen:
        _print(chosen)
    else:
        out.print(f"Nothing is known yet: {_known(latest.values())}.")
    return 0


def _known(found: Iterable[Accuracy]) -> str:
    names = sorted({each.source for each in found})
    return f"known are {', '.join(names[:12])}" if names else "no audited frame was judged so far"


def _chosen(found: Iterable[Accuracy], sources: tuple[str, ...], every: bool) -> list[Accuracy]:
    """Those of the sources that are asked for, by source, the model that answered last first."""
    ordered = sorted(found, key=lambda each: (each.source, -each.until.timestamp()))
    of_sources = [each for each in ordered if not sources or each.source in sources]
    if every:
        return of_sources
    seen: set[str] = set()
    return [each for each in of_sources if not (each.source in seen or seen.add(each.source))]  # type: ignore[func-returns-value]


def _print(found: list[Accuracy]) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("source", "answers", "frames", "precision", "recall", "F1"):
        table.add_column(name, justify="right" if name == "frames" else "left", overflow="fold")
    for each in found:
        if each.unknown is None:
            for answers in ("leaf", "results"):
                head = (clean(each.source), answers, str(each.frames)) if answers == "leaf" else ("", answers, "")
                table.add_row(*head, *(_share(each, f"{answers}_{name}") for name in _MEASURES))
    if table.row_count:
        out.print(table)
    for each in found:
        out.print(Text(_note(each), style="dim"), soft_wrap=True)


def _note(of: Accuracy) -> str:
    """What is not in the table: which model, until when, and how far its confidence can be relied upon."""
    parts = [clean(of.model), f"until {of.until.astimezone():%Y-%m-%d %H:%M:%S}"]
    if of.against == "labels":
        parts.append("against labels")
    if of.unknown:
        return f"{clean(of.source)}: not known yet, {of.unknown} ({', '.join(parts)})"
    if of.missing:
        parts.append(f"{of.missing} audited frames were never judged")
    if of.calibration_error is not None:
        parts.append(f"calibration error {of.calibration_error:.3f}")
    if of.sure_from is not None:
        parts.append(f"sure from {of.sure_from:.2f} on ({of.sure_share or 0:.0%} of answers, risk {of.risk:g})")
    return f"{clean(of.source)}: {', '.join(parts)}"


def _share(of: Accuracy, name: str) -> str:
    value, low, high = (getattr(of, f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.3f} ({low:.2f}–{high:.2f})" if value is not None else "–"
