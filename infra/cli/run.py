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
from schemas.errors import Fault

NEEDS_A_PERSON = 78  # EX_CONFIG of sysexits.h: service managers can be told not to start such a process again
ROLES = {"leaf": ("agent", "resolver", "link"), "region": ("agent", "resolver")}


def _role_options(command: Callable[..., int]) -> Callable[..., int]:
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
      headwater config init
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
    with ended_by_signals(), Group(restarts=5, final=frozenset({NEEDS_A_PERSON})) as group:
        for name in roles:
            group.start(role_process(config_path, tier, name, log_form=log_form, log_level=log_level))
        err.print(f"[bold]{tier} {config.name}[/] is starting: {', '.join(roles)} on {config.kafka.bootstrap_servers}. Ctrl-C stops it.")
        ended = None
        while ended is None:
            ended = group.watch(3600)
    raise CommandFailed(f"{ended.name} ended and does not stay up (exit code {ended.poll()}): what it said last, above, is why")


def role_process(
    config_path: str, tier: str, role: str, *, log_form: str = "text", log_level: str = "INFO", log_path: Path | None = None, nice: int = 0
) -> Child:
    """One role of a site as a child process."""
    argv = [sys.executable, "-m", "infra.cli", "run", tier, "-c", config_path, "--role", role, "--log", log_form, "--log-level", log_level]
    return Child(f"{tier} {role}", argv, log_path=log_path, nice=nice, grace_s=30.0)


def _prepare(config: SiteConfig, create_topics: bool) -> None:
    """Models and topics, before the first process starts, with what a person needs to see."""
    from infra.assets.models import ready_models
    from streams.clients import Clients
    from streams.cluster import create_topics as create
    from streams.topology import Topology

    if create_topics:
        created = create(Topology(config), Clients(config.kafka, f"{config.name}.run"))
        if created:
            err.print(f"created {len(created)} topics")
    ready_models([config.detector])


def run_role(config: SiteConfig, role: str) -> int:
    """Run one role in this process until a signal; returns its exit code. A fault that waiting does not mend gives `NEEDS_A_PERSON`."""
    from streams import telemetry

    try:
        port = telemetry.serve(config.metrics, role, site=config.name, tier=config.tier)
        err.print(f"metrics of {config.name}.{role}: http://{config.metrics.host}:{port}/metrics")
        return _run_link(config) if role == "link" else _run_worker(config, role)
    except Fault as fault:
        CommandFailed(str(fault)).show()
        return 1 if isinstance(fault, ConnectionError) else NEEDS_A_PERSON


def _run_worker(config: SiteConfig, role: str) -> int:
    from agents import worker
    from infra.assets.models import models_folder

    folder = Path(site_folder(config, paths.data_dir() / "sites"))
    folder.mkdir(parents=True, exist_ok=True)
    if role == "resolver":
        return worker.run_resolver(config, folder)
    run = worker.run_leaf if config.tier == "leaf" else worker.run_region
    return run(config, folder, models_folder())


def _run_link(config: SiteConfig) -> int:
    import threading

    from streams.link import Link

    link = Link(config)
    with ended_by_signals():
        link.start()
        try:
            while True:
                threading.Event().wait(3600)
        finally:
            link.stop()
