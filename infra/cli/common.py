"""What the commands share: reading the site's file, failing with one clear message, and JSON for programs."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from infra.text import shown, shown_json
from schemas.config import InvalidConfig, SiteConfig, parse

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = "headwater.toml"


class Screen(Console):
    """A console that text cannot steer: a control character in what is printed is shown as its escape. Names of consumer groups, errors
    of brokers and cameras, and records come from outside."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text, keep="\n"))


out = Screen(highlight=False, soft_wrap=True)
err = Screen(stderr=True, highlight=False, soft_wrap=True)


class CommandFailed(click.ClickException):
    """A command that could not do its work: what happened and what to do, in one message. Exit code 1."""

    exit_code = 1

    def shown(self) -> str:
        """The message as it is printed."""
        return shown(f"headwater: {self.format_message()}", keep="\n")

    def show(self, file: Any = None) -> None:
        click.echo(self.shown(), err=True)


def config_option(command: F) -> F:
    """`-c/--config FILE`, also from HEADWATER_CONFIG."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        default=DEFAULT_CONFIG,
        envvar="HEADWATER_CONFIG",
        show_default=True,
        show_envvar=True,
        metavar="FILE",
        help="The site's configuration.",
    )(command)


def json_option(command: F) -> F:
    """`--json`: print one JSON document (or one a line) instead of text for people."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def load_config(path: str) -> SiteConfig:
    """Read a site's file; raises `CommandFailed` with what is wrong and what to do."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandFailed(f"there is no file {path}: `headwater config init` writes one, or name yours with --config FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}") from None
    try:
        return parse(text, os.environ, where=path)
    except InvalidConfig as error:
        raise CommandFailed(str(error)) from None


def me() -> str:
    """Who gives an order: user and machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "someone"
    return f"{user}@{socket.gethostname()}"[:128]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(shown_json(msgspec.json.format(msgspec.json.encode(value)).decode()) + "\n")
    sys.stdout.flush()
