"""`headwater bench`: the long runs that show what Headwater promises; each command is a module of its own, imported when it is used."""

from __future__ import annotations

import click

from infra.cli.lazy import LazyGroup

# name of the command: (module, attribute, the sentence in the list of commands)
COMMANDS = {
    "budgets": ("infra.cli.bench_budgets", "budgets", "Both budgets of a site, obeyed and used, for minutes."),
    "cascade": ("infra.cli.bench_cascade", "cascade", "Policies, budgets and teaching over one video, with real models."),
    "coverage": ("infra.cli.bench_coverage", "coverage", "Whether stated intervals and risks hold, on streams whose truth is known."),
    "drift": ("infra.cli.bench_drift", "drift", "False alarms, delays and cost of noticing that a stream has changed."),
    "faults": ("infra.cli.bench_faults", "faults", "Every fault on two real sites, judged record by record from outside."),
    "fuzz": ("infra.cli.bench_fuzz", "fuzz", "Every decoder of bytes from outside under a fuzzer guided by coverage."),
    "link": ("infra.cli.bench_link", "link", "The link beside MirrorMaker 2 and a plain copying loop, on the same outage."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, no_args_is_help=True)
def bench() -> None:
    """Benchmarks: what Headwater promises, measured on this machine.

    \b
    Examples:
      headwater bench cascade
      headwater bench link
      headwater bench faults --long
    """
