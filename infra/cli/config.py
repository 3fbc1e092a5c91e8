"""`headwater config`: a site's file written, checked and shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.markup import escape

from infra.cli.clusters import clients_of, counted
from infra.cli.common import CommandFailed, config_option, err, json_option, load_config, out, print_json
from schemas.config import Detector, Fallback, InvalidConfig, SiteConfig, parse


@click.group()
def config() -> None:
    """Check, show and start a site's configuration.

    \b
    Examples:
      headwater config init --tier leaf --name leaf-1
      headwater config check -c headwater.toml
      headwater config show
    """


@config.command()
@config_option
@click.option("--tier", type=click.Choice(["leaf", "region"]), default="leaf", show_default=True, help="What the site is.")
@click.option("--name", help="Name of the site; by default leaf-1 or region.")
@click.option("--kafka", "servers", metavar="HOST:PORT", help="The site's Kafka.")
@click.option("--region", "region", metavar="HOST:PORT", help="For a leaf: its region's Kafka, which the link dials.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="For a region: a leaf site that it serves (repeat it).")
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@json_option
def init(
    config_path: str,
    tier: str,
    name: str | None,
    servers: str | None,
    region: str | None,
    sites: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Write a documented file with every field, what it takes and its default.

    What is at its default stands in a comment. With `-c -` it is written to standard output.

    \b
    Examples:
      headwater config init
      headwater config init --name gate-3 --region region.example.net:9092 -c gate-3.toml
      headwater config init --tier region --name region --site gate-3 --site gate-4 -c region.toml
    """
    from schemas.config_file import document

    values: dict[str, Any] = {"name": name or ("leaf-1" if tier == "leaf" else "region"), "tier": tier}
    if servers is not None:
        values["kafka"] = {"bootstrap_servers": servers}
    if tier == "leaf":
        if sites:
            raise click.UsageError("--site is for a region: add --tier region")
        if region is not None:
            values["link"] = {"region": {"bootstrap_servers": region}}
    else:
        if region is not None:
            raise click.UsageError("--region is for a leaf: the leaf dials")
        values["region"] = {"sites": list(sites) or ["leaf-1"]}
        values["detector"] = {"sizes": [224, 320, 416, 512]}  # together they are better than any one of them
    text = document(values)
    try:
        parse(text, os.environ, where="the options")
    except InvalidConfig as error:
        raise CommandFailed(str(error)) from None
    if config_path == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(config_path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandFailed(f"{config_path} is there already: --force overwrites it, -c FILE writes another") from None
    except OSError as error:
        raise CommandFailed(f"{config_path} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"written": config_path})
    else:
        err.print(f"written to {escape(config_path)}: edit it, then `headwater config check -c {escape(config_path)}`")


@config.command()
@config_option
@json_option
def check(config_path: str, as_json: bool) -> int:
    """Say whether the file is right, or every fault with its path and what was expected.

    Exit code 1 if there is a fault. No cluster is asked: `headwater topology check` and `headwater doctor` do that.

    \b
    Example:
      headwater config check -c leaf.toml
    """
    try:
        site = load_config(config_path)
    except CommandFailed as error:
        if not as_json:
            raise
        print_json({"file": config_path, "ok": False, "faults": [error.format_message()], "warnings": []})
        return 1
    faults, warnings = [*_faults(site)], [*_warnings(site)]
    if as_json:
        print_json({"file": config_path, "ok": not faults, "faults": faults, "warnings": warnings})
        return 1 if faults else 0
    for warning in warnings:
        out.print(f"[yellow]warning[/] {escape(warning)}")
    if faults:
        raise CommandFailed("\n".join(f"{config_path}: {fault}" for fault in faults))
    rules = counted(len(site.rules), "rule")
    out.print(f"[green]OK[/] {escape(config_path)}: {site.tier} {site.name}, {rules}, Kafka at {site.kafka.bootstrap_servers}")
    return 0


def _faults(site: SiteConfig) -> Iterator[str]:
    """What only this machine can say: files that are not there, settings that the Kafka client does not take."""
    from agents.models.store import OWN_MODEL
    from streams.cluster import unusable

    detectors: dict[str, Detector | Fallback] = {"$.detector": site.detector}
    detectors |= {f"$.detector.fallbacks[{index}]": each for index, each in enumerate(site.detector.fallbacks)}
    for path, detector in detectors.items():
        if detector.model not in ("", OWN_MODEL) and not Path(detector.model).is_file():
            yield f"{path}.model is {detector.model!r}: expected a file that is there, or {OWN_MODEL!r}"
        if detector.labels and not Path(detector.labels).is_file():
            yield f"{path}.labels is {detector.labels!r}: expected a file that is there"
    clusters = {"$.kafka": site.kafka}
    if site.link is not None:
        clusters["$.link.region"] = site.link.region
    if site.link is not None and site.link.second is not None:
        clusters["$.link.second.region"] = site.link.second.region
    for path, kafka in clusters.items():
        if reason := unusable(clients_of(kafka, "config")):
            yield f"{path}.properties: {reason}"


def _warnings(site: SiteConfig) -> Iterator[str]:
    if site.link is not None and site.link.region.bootstrap_servers == site.kafka.bootstrap_servers:
        yield "$.link.region.bootstrap_servers is the site's own Kafka: the link would carry nothing away"
    if site.tier == "leaf" and not site.rules:
        yield "$.rules is empty: no alert will be raised"
    if site.tier == "leaf" and site.link is None and site.policy.mode != "off":
        yield "there is no [link]: escalations will wait until they expire (set policy.mode to 'off', or add [link])"


@config.command()
@config_option
@json_option
def show(config_path: str, as_json: bool) -> None:
    """Show the values in force, defaults included; secrets are hidden.

    The output is TOML. What differs from the default stands out.

    \b
    Examples:
      headwater config show
      headwater config show --json | jq .topics
    """
    site = load_config(config_path)
    tree = effective(site)
    if as_json:
        print_json(tree)
        return
    defaults = effective(SiteConfig(name=site.name, tier="leaf"))
    for line in _lines(tree, defaults, ""):
        out.print(line)


def effective(site: SiteConfig) -> dict[str, Any]:
    """All values of a site as plain data, secrets hidden."""
    from streams.clients import redacted

    tree: dict[str, Any] = msgspec.to_builtins(site)
    for kafka in (tree["kafka"], (tree["link"] or {}).get("region", {})):
        if "properties" in kafka:
            kafka["properties"] = redacted(kafka["properties"])
    return tree


_REPEATED = ("rules", "shared_zones", "redact", "fallbacks")  # tables that may stand many times


def _lines(tree: dict[str, Any], defaults: dict[str, Any] | None, path: str) -> Iterator[str]:
    from schemas.config_file import assign

    tables = {name: value for name, value in tree.items() if isinstance(value, dict) and name not in {"properties", "ports"}}
    for name, value in tree.items():
        if name in tables or value is None or name in _REPEATED:
            continue
        text = escape(assign(name, value))
        changed = defaults is None or defaults.get(name) != value
        yield f"[bold]{text}[/]" if changed else f"[dim]{text}[/]"
    for name in _REPEATED:
        for each in tree.get(name, ()):
            yield ""
            yield escape(f"[[{path}{name}]]")
            yield from _lines(each, None, "")
    for name, table in tables.items():
        yield ""
        yield escape(f"[{path}{name}]")
        yield from _lines(table, (defaults or {}).get(name), f"{path}{name}.")
