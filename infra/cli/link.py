"""`headwater link`: how a leaf's link stands, and to pause it and let it go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.cli.clusters import clients_of, explained
from infra.cli.common import CommandFailed, config_option, json_option, load_config, me, out, print_json
from schemas.links import Breaker, LinkOrder
from schemas.messages import Tier

if TYPE_CHECKING:
    from schemas.config import SiteConfig
    from streams.clients import Clients
    from streams.link.told import Told
    from streams.topology import Topology

CONFIRM_S = 10.0


@click.group(no_args_is_help=True)
def link() -> None:
    """The link of a leaf to its region: status, pause, resume.

    \b
    Examples:
      headwater link status -c leaf.toml
      headwater link status --watch
      headwater link pause --lane escalations --reason "roaming is expensive"
      headwater link resume
    """


@link.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
def status(config_path: str, as_json: bool, watch: bool) -> int:
    """Show whether the region answers, who carries, and what waits in each lane.

    Everything is read from the leaf's own Kafka, so it works during an outage. Exit code 0 if the link runs and its region answers, else 1.

    \b
    Examples:
      headwater link status
      headwater link status --json | jq '.lanes[] | select(.waiting > 0)'
    """
    config, clients, leaf = _open(config_path)
    told = _read(clients, leaf)
    if as_json:
        print_json(_plain(told))
    elif watch:
        with Live(_told(told, config), console=out, auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(2)
                told = _read(clients, leaf)
                live.update(_told(told, config), refresh=True)
    else:
        out.print(_told(told, config))
    return int(not (told.running and told.state is not None and told.state.breaker is Breaker.CLOSED))


def _order_options(command: Any) -> Any:
    for option in (
        json_option,
        click.option("--reason", help="Why, for whoever reads the status later."),
        click.option("--lane", "lanes", multiple=True, help="A topic, as `link status` names it; several may be given. None: all."),
        config_option,
    ):
        command = option(command)
    return command


@link.command()
@_order_options
def pause(config_path: str, lanes: tuple[str, ...], reason: str | None, as_json: bool) -> int:
    """Stop carrying, until `headwater link resume`; it holds over restarts. What waits is kept for as long as its topic's retention.

    \b
    Examples:
      headwater link pause --reason "maintenance at the region"
      headwater link pause --lane escalations --lane verdicts
    """
    return _order(config_path, lanes, reason, as_json, paused=True)


@link.command()
@_order_options
def resume(config_path: str, lanes: tuple[str, ...], reason: str | None, as_json: bool) -> int:
    """Go on carrying. With --lane the other lanes that are paused stay so.

    \b
    Examples:
      headwater link resume
    """
    return _order(config_path, lanes, reason, as_json, paused=False)


def _order(config_path: str, lanes: tuple[str, ...], reason: str | None, as_json: bool, *, paused: bool) -> int:
    from streams.link.told import give_order
    from streams.topology import DOWNWARDS, UPWARDS

    config, clients, leaf = _open(config_path)
    known = (*UPWARDS, *DOWNWARDS)
    if wrong := [lane for lane in lanes if lane not in known]:
        raise CommandFailed(f"--lane {wrong[0]!r:.60} is no lane of the link: expected {', '.join(known)}")
    before = _read(clients, leaf)
    held = set(before.order.lanes or known) if before.order is not None and before.order.paused else set()
    wanted = held | set(lanes or known) if paused else held - set(lanes or known)
    order = LinkOrder(
        site=config.name,
        paused=bool(wanted),
        lanes=() if wanted >= set(known) else tuple(lane for lane in known if lane in wanted),
        by=me(),
        reason=reason,
    )
    with explained():
        give_order(clients, leaf, order)
    heard = before.running and _heard(clients, leaf, order)
    if as_json:
        print_json({"ordered": msgspec.to_builtins(order), "heard": heard})
        return 0
    what = "pauses" if paused else "goes on"
    which = f" ({', '.join(lanes)})" if lanes else ""
    if heard:
        out.print(f"the link of {config.name} {what}{which}")
    else:
        out.print(f"the order is kept: the link of {config.name} {what}{which} when it runs (it does not say so now)")
    return 0


def _heard(clients: Clients, leaf: Topology, order: LinkOrder) -> bool:
    """Whether the link says that it follows the order, within a time."""
    until = time.monotonic() + CONFIRM_S
    while time.monotonic() < until:
        told = _read(clients, leaf)
        if told.state is not None and told.state.paused == order.paused and told.age_s < CONFIRM_S:
            return True
        time.sleep(0.3)
    return False


def _open(path: str) -> tuple[SiteConfig, Clients, Topology]:
    from streams.topology import Topology

    config = load_config(path)
    if config.tier_name is not Tier.LEAF:
        raise CommandFailed(f"{path} describes a {config.tier}: the link runs at a leaf, name its file with --config")
    if config.link is None:
        raise CommandFailed(f"{path} has no [link]: this leaf has no region, and decides everything alone")
    return config, clients_of(config.kafka, "link"), Topology(config)


def _read(clients: Clients, leaf: Topology) -> Told:
    from streams.link.told import read_told

    with explained():
        return read_told(clients, leaf)


def _plain(told: Told) -> dict[str, Any]:
    state: dict[str, Any] = msgspec.to_builtins(told.state, enc_hook=str) if told.state is not None else {}
    lanes = [msgspec.to_builtins(lane) for lane in told.state.lanes.lanes] if told.state is not None else []
    order = msgspec.to_builtins(told.order) if told.order is not None else None
    return {**state, "lanes": lanes, "running": told.running, "age_s": round(told.age_s, 1), "order": order}


_COLOURS = {Breaker.CLOSED: "green", Breaker.HALF_OPEN: "yellow", Breaker.OPEN: "red"}


def _told(told: Told, config: SiteConfig) -> Group:
    page: list[Text | Table] = []
    state = told.state
    if state is None:
        page.append(Text(f"the link of {config.name} has never run: `headwater run leaf` starts it", style="yellow"))
        return Group(*page)
    words = {Breaker.CLOSED: "answers", Breaker.HALF_OPEN: "is being tried", Breaker.OPEN: "does not answer"}[state.breaker]
    head = Text.assemble((state.site, "bold"), " → ", (state.region, "bold"), ": the region ", (words, _COLOURS[state.breaker]))
    head.append(f" since {state.since.astimezone():%Y-%m-%d %H:%M:%S}")
    page.append(head)
    if not told.running:
        page.append(Text(f"the link is not running: this is what it said {_duration(told.age_s)} ago", style="red"))
    budget = f"of {_size(state.budget_bytes_per_s)}/s" if state.budget_bytes_per_s else "without a budget"
    page.append(Text(f"carried by {state.writer}, generation {state.generation}; {_size(state.wire_bytes_per_s)}/s on the wire {budget}"))
    if told.order is not None and told.order.paused:
        why = f": {told.order.reason}" if told.order.reason else ""
        page.append(Text(f"paused ({', '.join(told.order.lanes) or 'all lanes'}) by {told.order.by}{why}", style="yellow"))
    if state.note:
        page.append(Text(state.note, style="yellow"))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("lane", "waiting", "bytes", "oldest", "rate", "drained in", "lost"):
        table.add_column(name, justify="left" if name == "lane" else "right", no_wrap=True)
    for lane in state.lanes.lanes:
        drain = "" if not lane.waiting else "?" if lane.drain_s is None else _duration(lane.drain_s)
        arrow = "↑" if lane.direction == "up" else "↓"
        table.add_row(
            f"{arrow} {lane.topic}" + (" (paused)" if lane.paused else ""),
            f"{lane.waiting:,}",
            _size(lane.waiting_bytes) if lane.waiting else "",
            _duration(lane.oldest_s) if lane.oldest_s else "",
            f"{lane.rate:,.1f}/s",
            drain,
            str(lane.lost) if lane.lost else "",
        )
    page.append(table)
    return Group(*page)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
