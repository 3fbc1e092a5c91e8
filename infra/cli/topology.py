"""`headwater topology`: the declared topics described, drawn, held against a live cluster, and created."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from infra.cli.clusters import clients_of, counted, explained, region_of
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, out, print_json
from schemas.config import SiteConfig

if TYPE_CHECKING:
    from streams.backlog import Waiting
    from streams.cluster import Report
    from streams.describe import Description
    from streams.topology import Topology

REGION_TIMEOUT_S = 5.0  # for a region that may well be away
_IN_TABLES = {"lag", "outage"}  # told in the tables, unless there is something to do about them
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@click.group()
def topology() -> None:
    """Describe, draw, check and create the topics.

    \b
    Examples:
      headwater topology describe -c leaf.toml
      headwater topology draw -c leaf.toml > topology.mmd
      headwater topology create -c leaf.toml
      headwater topology check -c leaf.toml --json
    """


def _views(path: str) -> tuple[SiteConfig, Topology, Topology | None]:
    """A site's topology, and its region's side if it has a link."""
    from streams.topology import Topology, region_view

    config = load_config(path)
    return config, Topology(config), None if config.link is None else region_view(config)


@topology.command()
@config_option
@click.option("--topics", is_flag=True, help="List the topics with how they are kept, instead of who reads and writes them.")
@json_option
def describe(config_path: str, topics: bool, as_json: bool) -> None:
    """Say which role reads and writes what.

    In the manner of Kafka Streams: one sub-topology a role, sources -> processor -> sinks; then what the link carries. It needs no
    cluster.

    \b
    Examples:
      headwater topology describe -c leaf.toml
      headwater topology describe --topics
    """
    from streams.describe import describe, description

    _, own, region = _views(config_path)
    if as_json:
        print_json(description(own, region))
    elif topics:
        _print_topics(description(own, region))
    else:
        click.echo(describe(own, region), nl=False)


def _print_topics(told: Description) -> None:
    from streams.laws import size_text, time_text

    for part in (told, told.region):
        if part is None:
            continue
        out.print(f"[bold]{part.tier} {part.site}[/] at {escape(part.cluster)}" + (" (as the link sees it)" if part is not told else ""))
        width = max(len(topic.name) for topic in part.topics)
        for topic in part.topics:
            policy, kept, limit = (topic.settings[name] for name in ("cleanup.policy", "retention.ms", "retention.bytes"))
            latest = "latest of each key" if "compact" in policy else ""
            time = time_text(int(kept) / 1000) if "delete" in policy else ""
            most = size_text(int(limit) * topic.partitions) if int(limit) > 0 else ""
            how = f"{topic.partitions} parts  {time:<10}  {most:<8}  {latest}".rstrip()
            out.print(f"  [bold]{escape(topic.name):<{width}}[/]  {how}")
            what = f"{topic.key} -> {topic.value}; written by {', '.join(topic.writers)}; read by {', '.join(topic.readers)}"
            out.print(f"    [dim]{escape(topic.description)}: {escape(what)}[/]")


@topology.command()
@config_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write to FILE instead of standard output.")
@click.option("--every-reader", is_flag=True, help="Also draw people and sinks where others read too: true, but crowded.")
@json_option
def draw(config_path: str, output: str | None, every_reader: bool, as_json: bool) -> None:
    """Draw the topology as a Mermaid flowchart.

    Paste it into a ```mermaid block of a Markdown file, or into https://mermaid.live. It needs no cluster.

    \b
    Example:
      headwater topology draw -c leaf.toml -o topology.mmd
    """
    from streams.describe import draw

    _, own, region = _views(config_path)
    text = draw(own, region, every_reader=every_reader)
    if output is not None:
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandFailed(f"{output} cannot be written: {error.strerror}") from None
        err.print(f"written to {escape(output)}")
    elif as_json:
        print_json({"mermaid": text})
    else:
        click.echo(text, nl=False)


@topology.command()
@config_option
@click.option("--repair", is_flag=True, help="Also set wrong settings of existing topics as they are declared.")
@json_option
def create(config_path: str, repair: bool, as_json: bool) -> None:
    """Create the declared topics that are missing.

    Existing topics are left as they are, unless --repair is given: then wrong settings are set as declared. Partition counts never
    change in place.

    \b
    Examples:
      headwater topology create -c leaf.toml
      headwater topology create -c leaf.toml --repair
    """
    from streams.cluster import create_topics, repair_settings
    from streams.topology import Topology

    config = load_config(config_path)
    own, clients = Topology(config), clients_of(config.kafka, "topology")
    with explained():
        created = create_topics(own, clients)
        repaired = repair_settings(own, clients) if repair else []
    if as_json:
        print_json({"cluster": config.kafka.bootstrap_servers, "created": created, "repaired": repaired})
        return
    for name in created:
        out.print(f"[green]created[/] {escape(name)}")
    for change in repaired:
        out.print(f"[green]set[/] {escape(change)}")
    if not created and not repaired:
        out.print(f"nothing to do: all {len(own.topics)} topics exist at {escape(config.kafka.bootstrap_servers)}")


@topology.command()
@config_option
@click.option(
    "--region/--no-region",
    default=None,
    help="Also check the region's side of the link; by default it is checked when the region can be reached.",
)
@json_option
def check(config_path: str, region: bool | None, as_json: bool) -> int:
    """Compare a live cluster with what is declared.

    Looks for missing topics, wrong partition counts and settings, topics and consumer groups that nobody declared, broken laws (the
    memory of the join, byte bounds), the lag of each group, and how long an outage of the link each topic survives at the present
    rates. Exit code 1 if there are errors.

    \b
    Examples:
      headwater topology check -c leaf.toml
      headwater topology check --json | jq '.clusters[].findings[] | select(.severity == "error")'
    """
    from streams.backlog import backlog
    from streams.cluster import inspect
    from streams.topology import Role

    config, own, far = _views(config_path)
    if region and far is None:
        raise CommandFailed(f"{config_path} has no [link]: this site has no region to check")
    clients, waiting = clients_of(config.kafka, "topology"), []
    with explained():
        looks = [_look(own, inspect(own, clients))]
    if far is not None and region is not False:
        _, kafka = region_of(config, config_path)
        try:
            with explained():
                there = clients_of(kafka, "topology")
                looks.append(_look(far, inspect(far, there, role=Role.LINK, timeout_s=REGION_TIMEOUT_S)))
                if not any(finding.code == "missing-topic" for look in looks for finding in look.findings):
                    waiting = backlog(own, far, clients, there, timeout_s=REGION_TIMEOUT_S)
        except CommandFailed as error:
            looks.append(_unreachable(far, str(error), wanted=bool(region)))
    errors, warnings = (sum(look.count(severity) for look in looks) for severity in ("error", "warning"))
    if as_json:
        print_json({"clusters": looks, "link": waiting, "errors": errors, "warnings": warnings})
    else:
        for look in looks:
            _print_look(look)
        _print_waiting(waiting)
        colour = "red" if errors else "yellow" if warnings else "green"
        told = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}" if errors or warnings else "clean: as declared"
        out.print(f"[bold {colour}]{told}[/]")
    return 1 if errors else 0


class Look(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One cluster as `topology check` reports it; `cluster` is its id, None if it could not be reached."""

    tier: str
    site: str
    bootstrap_servers: str
    declared_topics: int
    findings: Sequence[Any]
    cluster: str | None = None
    brokers: int | None = None
    lags: Sequence[Any] = ()
    outages: Sequence[Any] = ()
    most_bytes: int = 0

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def _look(topology: Topology, report: Report) -> Look:
    from streams.disk import most_bytes

    return Look(
        tier=topology.tier,
        site=topology.site,
        bootstrap_servers=topology.config.kafka.bootstrap_servers,
        declared_topics=len(topology.topics),
        findings=report.findings,
        cluster=report.cluster,
        brokers=report.brokers,
        lags=report.lags,
        outages=report.outages,
        most_bytes=most_bytes(topology),
    )


def _unreachable(region: Topology, problem: str, *, wanted: bool) -> Look:
    from streams.cluster import Finding, Severity

    finding = Finding(
        severity=Severity.ERROR if wanted else Severity.INFO,
        code="unreachable",
        subject=f"region {region.site}",
        problem=f"was not checked: {problem}",
        fix="" if wanted else "the leaf works without it; what waits for the link is kept meanwhile",
    )
    servers = region.config.kafka.bootstrap_servers
    return Look(tier="region", site=region.site, bootstrap_servers=servers, declared_topics=len(region.topics), findings=[finding])


def _print_look(look: Look) -> None:
    where = f"[bold]{look.tier} {look.site}[/] at {escape(look.bootstrap_servers)}"
    if look.cluster is not None:
        where += f"  [dim]cluster {escape(look.cluster)}, {counted(look.brokers or 0, 'broker')}[/]"
    out.print(where)
    told = [finding for finding in look.findings if finding.fix or finding.severity != "info" or finding.code not in _IN_TABLES]
    for finding, following in zip_longest(told, told[1:]):
        out.print(f"  [{_COLOURS[finding.severity]}]{finding.severity:<7}[/] [bold]{escape(finding.subject)}[/] {escape(finding.problem)}")
        if finding.fix and (following is None or following.fix != finding.fix):  # once for all that it mends
            out.print(f"          [dim]->[/] {escape(finding.fix)}")
    _print_lags(look)
    _print_outages(look)
    if look.most_bytes:
        from streams.laws import size_text

        out.print(f"  [dim]its topics take[/] {size_text(look.most_bytes)} [dim]at most; `headwater doctor` holds that against the disk[/]")


def _print_lags(look: Look) -> None:
    if not look.lags:
        return
    table = _table("group", "topic", "behind", "by partition")
    places: dict[tuple[str, str], list[int]] = {}
    for lag in look.lags:
        places.setdefault((lag.group, lag.topic), []).append(lag.lag)
    for (group, name), behind in places.items():
        table.add_row(escape(group), escape(name), str(sum(behind)), " ".join(map(str, behind)))
    out.print("  [dim]lag (records)[/]")
    out.print(Padding(table, (0, 0, 0, 4)), soft_wrap=False)


def _print_outages(look: Look) -> None:
    from streams.laws import size_text, time_text

    if not look.outages:
        return
    table = _table("topic", "survives", "by time", "by bytes", "present rate")
    for outage in look.outages:
        table.add_row(
            escape(outage.topic),
            f"[bold]{time_text(outage.survives_s)}[/]",
            time_text(outage.by_time_s),
            "-" if outage.by_bytes_s is None else time_text(outage.by_bytes_s),
            f"{size_text(outage.bytes_per_s)}/s" if outage.bytes_per_s else "nothing lately",
        )
    out.print("  [dim]outage of the link that each topic survives[/]")
    out.print(Padding(table, (0, 0, 0, 4)), soft_wrap=False)


def _print_waiting(waiting: Sequence[Waiting]) -> None:
    if not waiting:
        return
    table = _table("", "topic", "waiting", "by partition", "")
    for one in waiting:
        note = f"[yellow]{one.lost} lost to retention[/]" if one.lost else "" if one.carried_before else "[dim]never carried[/]"
        table.add_row(one.direction, escape(one.source), str(one.waiting), " ".join(map(str, one.by_partition)), note)
    out.print("[bold]link[/]  [dim]records that wait to be carried[/]")
    out.print(Padding(table, (0, 0, 0, 4)), soft_wrap=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="fold")
    return table
