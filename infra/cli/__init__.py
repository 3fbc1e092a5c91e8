"""The `headwater` command: one module a command group, imported only when it is used, so that `--help` answers at once."""

from __future__ import annotations

import sys

import click

from infra.cli.common import CommandFailed
from infra.cli.lazy import LazyGroup
from schemas.errors import Fault

# name of the command: (module, attribute, the sentence in the list of commands)
COMMANDS = {
    "demo": ("infra.cli.demo", "demo", "See the whole on this machine: real video, two Kafkas, two tiers, an outage."),
    "run": ("infra.cli.run", "run", "Run a site: leaf or region."),
    "produce": ("infra.cli.produce", "produce", "Publish video or images as frames."),
    "tail": ("infra.cli.tail", "tail", "Watch a topic, decoded for people."),
    "show": ("infra.cli.show", "show", "Show an alert: its story and its picture."),
    "account": ("infra.cli.account", "account", "Account for every record of a source: what became of it, and which are missing."),
    "accuracy": ("infra.cli.accuracy", "accuracy", "How accurate the answers to each source are, as the audit sample shows it."),
    "label": ("infra.cli.label", "label", "Say what frames truly show: accuracy is then measured against it."),
    "link": ("infra.cli.link", "link", "The link of a leaf to its region: status, pause, resume."),
    "dlq": ("infra.cli.dlq", "dlq", "Look at dead letters, bring their records back, or give them up."),
    "reprocess": ("infra.cli.reprocess", "reprocess", "Judge a time range again with another model."),
    "topology": ("infra.cli.topology", "topology", "Describe, draw, check and create the topics."),
    "config": ("infra.cli.config", "config", "Check, show and start a site's configuration."),
    "broker": ("infra.cli.broker", "broker", "Run a local Apache Kafka."),
    "models": ("infra.cli.models", "models", "Fetch, convert and list models."),
    "bench": ("infra.cli.bench", "bench", "Benchmarks: what Headwater promises, measured on this machine."),
    "doctor": ("infra.cli.doctor", "doctor", "Check what Headwater needs on this machine, with the fix for each fault."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
