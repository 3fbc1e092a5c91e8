"""`headwater doctor`: what Headwater needs on this machine, with the fix for each fault."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from infra.cli.clusters import counted
from infra.cli.common import DEFAULT_CONFIG, CommandFailed, err, json_option, load_config, out, print_json
from schemas.config import SiteConfig

_COLOURS = {"ok": "green", "info": "cyan", "warning": "yellow", "fault": "bold red"}


@click.command()
@click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    envvar="HEADWATER_CONFIG",
    show_envvar=True,
    help=f"The site's configuration; by default {DEFAULT_CONFIG} if it is there, else only the machine is looked at.",
)
@json_option
def doctor(config_path: str | None, as_json: bool) -> int:
    """Check what Headwater needs on this machine.

    Java, ports, disk, memory, cores, packages, models, engines asked for and got; with a site's configuration also its brokers and
    topics. Each finding comes with the fix. Nothing is changed. Exit code 1 if there is a fault.

    \b
    Examples:
      headwater doctor
      headwater doctor -c leaf.toml --json | jq '.findings[] | select(.state == "fault")'
    """
    from infra.doctor import Finding, State, examine, ok

    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            _print(finding.state, finding.subject, finding.said, finding.fix)

    config: SiteConfig | None = None
    path = config_path or (DEFAULT_CONFIG if Path(DEFAULT_CONFIG).is_file() else None)
    if path is not None:
        try:
            config = load_config(path)
            tell(ok("configuration", f"{path}: {config.tier} {config.name}"))
        except CommandFailed as error:
            tell(Finding(state=State.FAULT, subject="configuration", said=error.format_message(), fix="`headwater config check` says more"))
    looks = examine(config)
    while True:
        with err.status("looking"):
            finding = next(looks, None)
        if finding is None:
            break
        tell(finding)
    faults, warnings = (sum(finding.state is state for finding in found) for state in (State.FAULT, State.WARNING))
    if as_json:
        print_json({"findings": found, "faults": faults, "warnings": warnings})
    else:
        verdict = f"[bold red]{counted(faults, 'fault')}[/]" if faults else "[bold green]fit[/]"
        out.print(verdict + (f", {counted(warnings, 'warning')}" if warnings else ""))
    return 1 if faults else 0


def _print(state: str, subject: str, said: str, fix: str) -> None:
    text = Text(f"{state:<8}", style=_COLOURS[state])
    text.append(f"{subject:<16} ", style="bold").append(said, style="default")
    if fix:
        text.append("\n" + " " * 25).append("-> ", style="dim").append(fix, style="default")
    out.print(text)
