"""`headwater run leaf|region`: a site's processes, one a role, looked after until they are told to stop."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from infra import logs, paths
from infra.cli.common import CommandFailed, config_option, err, load_config
from infra.kafka import locks
from infra.kafka.local import guarded
from infra.processes import Child, Group, ended_by_signals
from schemas.config import SiteConfig, site_folder
from schemas.errors import Fault

NEEDS_A_PERSON = 78  # EX_CONFIG of sysexits.h: service managers can be told not to start such a process again
CRASHED = frozenset({70})  # EX_SOFTWARE: what `streams.quarantine.HUNG` ends a worker with whose work does not end
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
        click.option(
            "--workers",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Agent processes; they share the partitions (more than topics.partitions are of no use).",
        ),
        click.option(
            "--instance",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="With --role: which process of that role this is, where several run. Each resolver needs a number of its own.",
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
      headwater run leaf -c headwater.toml --role agent     # a further worker joins a site that runs; Ctrl-C takes it away
      headwater run leaf -c headwater.toml --workers 4
    """


@run.command()
@click.option("--role", type=click.Choice(ROLES["leaf"]), help="Run this process only; without it, all of them.")
@_role_options
def leaf(config_path: str, role: str | None, **options: Any) -> int:
    """Run a leaf: its agent, its resolver, and the link to its region if the file has [link]."""
    return _run("leaf", config_path, role, **options)


@run.command()
@click.option("--role", type=click.Choice(ROLES["region"]), help="Run this process only; without it, all of them.")
@_role_options
def region(config_path: str, role: str | None, **options: Any) -> int:
    """Run a region: its agent and its resolver."""
    return _run("region", config_path, role, **options)


def _run(
    tier: str, config_path: str, role: str | None, *, log_form: str, log_level: str, create_topics: bool, workers: int, instance: int
) -> int:
    config = load_config(config_path)
    if config.tier != tier:
        raise CommandFailed(f'{config_path} describes a {config.tier} (tier = "{config.tier}"): run it with `headwater run {config.tier}`')
    if role == "link" and config.link is None:
        raise CommandFailed(f"{config_path} has no [link]: a leaf without one has no region to dial")
    logs.setup(as_json=log_form == "json", level=log_level, site=config.name, role=role or "all")
    if role is not None:
        return run_role(config, role, instance)
    _prepare(config, create_topics)
    roles = [name for name in ROLES[tier] if name != "link" or config.link is not None]
    with ended_by_signals(), Group(restarts=5, crashes=30, crashed=CRASHED, final=frozenset({NEEDS_A_PERSON})) as group:
        for name in roles:
            for number in range(1, 1 + (workers if name == "agent" else 1)):
                group.start(role_process(config_path, tier, name, log_form=log_form, log_level=log_level, instance=number))
        err.print(f"[bold]{tier} {config.name}[/] is starting: {', '.join(roles)} on {config.kafka.bootstrap_servers}. Ctrl-C stops it.")
        ended = None
        while ended is None:
            ended = group.watch(3600)
    raise CommandFailed(f"{ended.name} ended and does not stay up (exit code {ended.poll()}): what it said last, above, is why")


def role_process(
    config_path: str,
    tier: str,
    role: str,
    *,
    log_form: str = "text",
    log_level: str = "INFO",
    log_path: Path | None = None,
    nice: int = 0,
    instance: int = 1,
) -> Child:
    """One role of a site as a child process; `instance` counts those of one role from 1."""
    argv = [sys.executable, "-m", "infra.cli", "run", tier, "-c", config_path, "--role", role, "--log", log_form, "--log-level", log_level]
    if instance > 1:
        argv += ["--instance", str(instance)]
    return Child(f"{tier} {role}" + (f" {instance}" if instance > 1 else ""), argv, log_path=log_path, nice=nice, grace_s=30.0)


def _prepare(config: SiteConfig, create_topics: bool) -> None:
    """Models and topics, before the first process starts, with what a person needs to see."""
    from streams.clients import Clients
    from streams.cluster import create_topics as create
    from streams.topology import Topology

    if create_topics:
        created = create(Topology(config), Clients(config.kafka, f"{config.name}.run"))
        if created:
            err.print(f"created {len(created)} topics")
    _ready_models(config)


def _ready_models(config: SiteConfig) -> None:
    """The detector, and on a leaf the smaller ones that it goes down to. A leaf starts without any: it stores and forwards."""
    from agents.sizes import choices
    from agents.steps import models_of
    from infra.assets import AssetUnavailable
    from infra.assets.models import ready_models

    if config.tier != "leaf":
        ready_models([config.detector])
        return
    try:
        ready_models([*models_of(config.detector), *choices(config.detector)])
    except AssetUnavailable as error:
        err.print(f"[yellow]warning[/] not every model is ready, the leaf goes on with those that are: {escape(str(error))}")


def run_role(config: SiteConfig, role: str, instance: int = 1) -> int:
    """Run one role in this process until a signal; returns its exit code. A fault that waiting does not mend gives `NEEDS_A_PERSON`."""
    from streams import telemetry

    try:
        port = telemetry.serve(config.metrics, role, site=config.name, tier=config.tier, instance=instance)
        err.print(f"metrics of {config.name}.{role}: http://{config.metrics.host}:{port}/metrics")
        return _run_link(config) if role == "link" else _run_worker(config, role, instance)
    except Fault as fault:
        CommandFailed(str(fault)).show()
        return 1 if isinstance(fault, ConnectionError) else NEEDS_A_PERSON


def _run_worker(config: SiteConfig, role: str, instance: int) -> int:
    from agents import worker
    from infra.assets.models import models_folder

    folder = Path(site_folder(config, paths.data_dir() / "sites"))
    folder.mkdir(parents=True, exist_ok=True)
    if role == "resolver":
        with _only_one(folder / f"resolver-{instance}.lock", config, instance):
            return worker.run_resolver(config, folder, instance)
    run = worker.run_leaf if config.tier == "leaf" else worker.run_region
    return run(guarded(config), folder, models_folder())


class RunsAlready(Fault, RuntimeError):
    """Another process has this place; the message says how to have both."""


@contextlib.contextmanager
def _only_one(path: Path, config: SiteConfig, instance: int) -> Iterator[None]:
    """Refuse to start beside another resolver of the same number: its place in the group is fixed, so the newcomer would end it."""
    try:
        lock = locks.acquire(path)
    except locks.Locked:
        raise RunsAlready(
            f"resolver {instance} of {config.name} runs on this machine already: end it first, or run a further one beside it with "
            f"--instance {instance + 1}"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


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
