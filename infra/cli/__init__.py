"""The `headwater` command: one module a command group, imported only when it is used, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import sys

import click

from infra.cli.common import CommandFailed
from schemas.errors import Fault

# name of the command: (module, attribute, the sentence in the list of commands)
COMMANDS = {
    "demo": ("infra.cli.demo", "demo", "See the whole on this machine: real video, two Kafkas, two tiers, an outage."),
    "run": ("infra.cli.run", "run", "Run a site: leaf or region."),
    "produce": ("infra.cli.produce", "produce", "Publish video or images as frames."),
    "tail": ("infra.cli.tail", "tail", "Watch a topic, decoded for people."),
    "show": ("infra.cli.show", "show", "Show an alert: its story and its picture."),
    "topology": ("infra.cli.topology", "topology", "Describe, draw, check and create the topics."),
    "config": ("infra.cli.config", "config", "Check, show and start a site's configuration."),
    "broker": ("infra.cli.broker", "broker", "Run a local Apache Kafka."),
    "models": ("infra.cli.models", "models", "Fetch, convert and list models."),
    "doctor": ("infra.cli.doctor", "doctor", "Check what Headwater needs on this machine, with the fix for each fault."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, _, sentence) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="headwater", prog_name="headwater")
def cli() -> None:
    """Event-streaming inference for edge AI.

    Cameras publish frames to Kafka; leaf nodes answer each at once with a small model; what a leaf is unsure of goes to a region.

    \b
    Start here:
      headwater demo --seconds 60 --outage 20:15
    """


def main() -> None:
    """Entry point: exit codes are 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        code = cli.main(standalone_mode=False)
    except Fault as fault:
        CommandFailed(str(fault)).show()
        sys.exit(1)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
