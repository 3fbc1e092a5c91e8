"""`headwater run leaf|region`: a site's processes, one a role, looked after until they are told to stop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from infra import logs, paths
from infra.cli.common import CommandFailed, config_option, err, load_config
from infra.processes import Child, Group, ended_by_signals
from schemas.config import SiteConfig, site_folder

ROLES = {"leaf": ("agent", "resolver", "link"), "region": ("agent", "resolver")}


def _role_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--log", "log_form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the log lines."
        ),
        click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="INFO", show_default=True),
        click.option(
            "--create-topics/--no-create-topics", default=True, show_default=True, help="Create the site's topics that are missing."
        ),
    ):
        command = option(command)
    return config_option(command)


@click.group(no_args_is_help=True)
def run() -> None:
    """Run a site: leaf or region.

    \b
    Examples:
      headwater config init leaf > headwater.toml
      headwater run leaf -c headwater.toml
      headwater run leaf -c headwater.toml --role link      # one process of it, as a service manager would
    """


@run.command()
@click.option("--role", type=click.Choice(ROLES["leaf"]), help="Run this process only; without it, all of them.")
@_role_options
def leaf(config_path: str, role: str | None, log_form: str, log_level: str, create_topics: bool) -> int:
    """Run a leaf: its agent, its resolver, and the link to its region if the file has [link]."""
    return _run("leaf", config_path, role, log_form, log_level, create_topics)


@run.command()
@click.option("--role", type=click.Choice(ROLES["region"]), help="Run this process only; without it, all of them.")
@_role_options
def region(config_path: str, role: str | None, log_form: str, log_level: str, create_topics: bool) -> int:
    """Run a region: its agent and its resolver."""
    return _run("region", config_path, role, log_form, log_level, create_topics)


def _run(tier: str, config_path: str, role: str | None, log_form: str, log_level: str, create_topics: bool) -> int:
    config = load_config(config_path)
    if config.tier != tier:
        raise CommandFailed(f'{config_path} describes a {config.tier} (tier = "{config.tier}"): run it with `headwater run {config.tier}`')
    if role == "link" and config.link is None:
        raise CommandFailed(f"{config_path} has no [link]: a leaf without one has no region to dial")
    logs.setup(as_json=log_form == "json", level=log_level, site=config.name, role=role or "all")
    if role is not None:
        return run_role(config, role)
    _prepare(config, create_topics)
    roles = [name for name in ROLES[tier] if name != "link" or config.link is not None]
    with ended_by_signals(), Group(restarts=5) as group:
        for name in roles:
            group.start(role_process(config_path, tier, name, log_form=log_form, log_level=log_level))
        err.print(f"[bold]{tier} {config.name}[/] is starting: {', '.join(roles)} on {config.kafka.bootstrap_servers}. Ctrl-C stops it.")
        ended = None
        while ended is None:
            ended = group.watch(3600)
    raise CommandFailed(f"{ended.name} ended and does not stay up (exit code {ended.poll()}): its last log lines say why")


def role_process(
    config_path: str, tier: str, role: str, *, log_form: str = "text", log_level: str = "INFO", log_path: Path | None = None, nice: int = 0
) -> Child:
    """One role of a site as a child process."""
    argv = [sys.executable, "-m", "infra.cli", "run", tier, "-c", config_path, "--role", role, "--log", log_form, "--log-level", log_level]
    return Child(f"{tier} {role}", argv, log_path=log_path, nice=nice, grace_s=30.0)


def _prepare(config: SiteConfig, create_topics: bool) -> None:
    """Models and topics, before the first process starts, with what a person needs to see."""
    from infra.assets import AssetUnavailable
    from infra.assets.models import ready_models
    from streams.clients import BrokerUnavailable, Clients
    from streams.cluster import CannotChange
    from streams.cluster import create_topics as create
    from streams.topology import Topology

    try:
        ready_models([config.detector])
    except AssetUnavailable as error:
        raise CommandFailed(str(error)) from None
    if create_topics:
        try:
            created = create(Topology(config), Clients(config.kafka, f"{config.name}.run"))
        except (BrokerUnavailable, CannotChange) as error:
            raise CommandFailed(str(error)) from None
        if created:
            err.print(f"created {len(created)} topics")


def run_role(config: SiteConfig, role: str) -> int:
    """Run one role in this process until a signal; returns its exit code."""
    from streams import telemetry
    from streams.clients import BrokerUnavailable

    try:
        port = telemetry.serve(config.metrics, role, site=config.name, tier=config.tier)
    except telemetry.MetricsUnavailable as error:
        raise CommandFailed(str(error)) from None
    err.print(f"metrics of {config.name}.{role}: http://{config.metrics.host}:{port}/metrics")
    folder = Path(site_folder(config, paths.data_dir() / "sites"))
    folder.mkdir(parents=True, exist_ok=True)
    if role == "link":
        return _run_link(config)
    from agents.inference.engines import NoEngine
    from agents.inference.flavours import WrongRuntime
    from agents.inference.layouts import Misfit
    from agents.inference.network import UnusableModel
    from agents.models.labels import InvalidLabels
    from agents.models.store import ModelNotPrepared
    from agents.worker import TopicsMissing, run_leaf, run_region, run_resolver
    from infra.assets.models import models_folder
    from streams.app import UnsupportedSecurity

    try:
        if role == "resolver":
            return run_resolver(config, folder)
        models = models_folder()
        return run_leaf(config, folder, models) if config.tier == "leaf" else run_region(config, folder, models)
    except (
        BrokerUnavailable,
        TopicsMissing,
        UnsupportedSecurity,
        NoEngine,
        WrongRuntime,
        Misfit,
        UnusableModel,
        InvalidLabels,
        ModelNotPrepared,
    ) as error:
        raise CommandFailed(str(error)) from None


def _run_link(config: SiteConfig) -> int:
    import threading

    from streams.link import Link

    link = Link(config)
    ended = threading.Event()
    with ended_by_signals():
        link.start()
        try:
            while not ended.wait(3600):
                pass
        finally:
            link.stop()
    return 0
