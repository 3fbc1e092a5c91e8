"""Which leaf sites `headwater produce` publishes to, as they are named on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from infra.cli.clusters import clients_of
from infra.cli.common import CommandFailed, load_config
from schemas.config import Bootstrap, InvalidConfig, SiteConfig
from schemas.routing import Routing, Sites, named_site, parse_sites
from streams.routing.way import Site
from streams.topology import Topology


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What both commands take."""

    bootstrap: str | None
    to: tuple[str, ...]
    sites_path: str | None
    config_paths: tuple[str, ...]
    config_named: bool
    seconds: float | None
    frames: int | None
    manifest: str | None
    as_json: bool


def sites_of(configs: list[SiteConfig], biases_s: dict[str, float]) -> list[Site]:
    """The sites, with what makes their Kafka clients."""
    return [
        Site(clients=clients_of(config.kafka, "produce"), topology=Topology(config), bias_s=biases_s.get(config.name, 0.0))
        for config in configs
    ]


def configs_of(wish: Wish) -> tuple[list[SiteConfig], Routing, dict[str, float]]:
    """The sites that may be published to, when to move between them, and what is added to the round trip of some, in seconds.

    Raises
    ------
    CommandFailed
        For a file that cannot be used, or no site at all.
    click.UsageError
        For options that contradict each other.
    """
    ways = [name for name, given in (("--bootstrap-servers", wish.bootstrap), ("--to", wish.to), ("--sites", wish.sites_path)) if given]
    if len(ways) > 1:
        raise click.UsageError(f"{' and '.join(ways)} both say where to publish: give one of them")
    routing, biases_s = Routing(), {}
    if wish.sites_path is not None:
        if wish.config_named:
            raise click.UsageError("--sites and --config both name sites: give one of them")
        listed = _listed(wish.sites_path)
        configs, routing, biases_s = listed.configs(), listed.routing, {site.name: site.bias_ms / 1e3 for site in listed.sites}
    elif len(wish.config_paths) > 1:
        if ways:
            raise click.UsageError(f"several --config name the sites: {ways[0]} cannot say where as well")
        configs = [load_config(path) for path in wish.config_paths]
    else:
        configs = _from_one(wish)
    for config in configs:
        if config.tier != "leaf":
            raise CommandFailed(f"{config.name} is a {config.tier}: frames go to a leaf")
    names = [config.name for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise click.UsageError(f"two sites are called {twice}: each needs a name of its own, such as --to NAME=HOST:PORT")
    return configs, routing, biases_s


def _from_one(wish: Wish) -> list[SiteConfig]:
    """One site's file, or addresses, or addresses with all else from a file."""
    [path] = wish.config_paths
    if wish.config_named or Path(path).exists():
        config = load_config(path)
        if config.tier != "leaf":
            raise CommandFailed(f"{path} is the file of a {config.tier}: frames go to a leaf")
    elif wish.bootstrap is not None or wish.to:
        config = SiteConfig(name="local", tier="leaf")
    else:
        raise CommandFailed(
            f"there is no file {path}: name a Kafka with --bootstrap-servers HOST:PORT, several leaf sites with --to HOST:PORT each, "
            "or a site's file with --config FILE (`headwater config init` writes one)"
        )
    if wish.to:
        try:
            return [named_site(text, config) for text in wish.to]
        except InvalidConfig as error:
            raise click.UsageError(f"--to {error}") from None
    if wish.bootstrap is None:
        return [config]
    try:
        servers = msgspec.convert(wish.bootstrap, Bootstrap)
    except msgspec.ValidationError:
        raise click.UsageError(f"--bootstrap-servers {wish.bootstrap!r}: expected host:port, or several separated by commas") from None
    return [msgspec.structs.replace(config, kafka=msgspec.structs.replace(config.kafka, bootstrap_servers=servers))]


def _listed(path: str) -> Sites:
    try:
        return parse_sites(Path(path).read_text(encoding="utf-8"), os.environ, where=path)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}") from None
    except InvalidConfig as error:
        raise CommandFailed(str(error)) from None
