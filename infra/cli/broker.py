"""`headwater broker`: local one-node Kafkas for a person: up, down, status, logs. What a broker is stands in `infra.kafka`."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import click
import msgspec
import psutil
from rich.filesize import decimal
from rich.table import Table

from infra.cli.common import CommandFailed, err, json_option, out, print_json
from infra.kafka import KafkaFailed, local
from infra.kafka.broker import FULL_BYTES, Broker, stop_broker
from infra.kafka.folder import read_state
from infra.kafka.ready import wait_answer
from infra.kafka.settings import HEAP_MB, MIN_FREE_BYTES, BrokerSettings
from infra.kafka.supervise import keep_running
from infra.processes import Terminated, ended_by_signals
from infra.text import shown

LOOK_S = 0.2
ANSWER_S = 3.0
STOPPED = {0, 143}  # exit codes of a JVM that was asked to end


class BrokerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One broker as `headwater broker status` shows it. `state`: running (it answers), silent (it does not), starting, stopped,
    disk full (stopped, and it cannot start)."""

    name: str
    state: str
    folder: str
    log: str
    data_bytes: int
    pid: int | None = None
    bootstrap_servers: str | None = None
    cluster_id: str | None = None
    resident_bytes: int | None = None
    uptime_s: float | None = None


def _name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", value):
        raise click.BadParameter("use lower-case letters, digits and '-'", ctx, parameter)
    return value


def _host(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if value in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
        raise click.BadParameter("clients dial this address: name one of this machine, such as 127.0.0.1 or 192.168.1.10", ctx, parameter)
    return value


name_argument = click.argument("name", default="local", callback=_name)


@click.group()
def broker() -> None:
    """Run a local Apache Kafka: one node, no set-up, data kept between runs.

    \b
    Examples:
      headwater broker up                          # on 127.0.0.1:9092, until Ctrl-C
      headwater broker up leaf --port 9092 --detach
      headwater broker up region --port 9192 --detach
      headwater broker status
      headwater broker logs leaf -f
      headwater broker down --all

    Any other Kafka is used by naming its address in the site's file.
    """


@broker.command(short_help="Start a broker.")
@name_argument
@click.option("--port", default=9092, show_default=True, type=click.IntRange(0, 65_535), help="Port for clients; 0 finds a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, callback=_host, help="Address to listen on, and that clients dial.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Its folder; remembered for its name.")
@click.option("--heap-mb", default=HEAP_MB, show_default=True, type=click.IntRange(96, 65_536), help="Java heap in MB.")
@click.option(
    "--min-free-mb",
    default=MIN_FREE_BYTES >> 20,
    show_default=True,
    type=click.IntRange(1),
    help="Space that must be free to start, and to start again after the disk was full.",
)
@click.option("--detach", is_flag=True, help="Return when it answers; `headwater broker down` stops it.")
@json_option
def up(name: str, port: int, host: str, data_dir: Path | None, heap_mb: int, min_free_mb: int, detach: bool, as_json: bool) -> None:
    """Start the broker NAME (local) and keep it until Ctrl-C.

    The first start fetches Kafka (45 MB) and takes some seconds more; later ones need no network. If its disk fills, Kafka stops; this
    command says so, waits for room, and starts it again (with --detach nobody does: start it again yourself).

    \b
    Examples:
      headwater broker up
      headwater broker up region --port 9192 --detach
      headwater broker up archive --port 0 --data-dir /mnt/disk/kafka --json
    """
    folder = _choose_folder(name, data_dir)
    server = Broker(
        BrokerSettings(name=name, folder=folder, host=host, port=port, heap_mb=heap_mb, min_free_bytes=min_free_mb << 20), detached=detach
    )
    with ended_by_signals():
        try:
            server.spawn()
            with err.status(f"starting broker {name}") if err.is_terminal else nullcontext():
                server.wait_ready()
        except KafkaFailed as error:
            raise CommandFailed(str(error)) from None
        try:
            _say_ready(server, as_json)
            if detach:
                return
            code = keep_running(server, _say)
        except KafkaFailed as error:
            raise CommandFailed(str(error)) from None
        except (KeyboardInterrupt, Terminated):
            err.print(f"stopping broker {name}")
            raise
        finally:
            if not detach:
                server.stop()
    if code not in STOPPED:
        raise CommandFailed(f"broker {name} ended by itself (code {code}): see `headwater broker logs {name}`")
    err.print(f"broker {name} was stopped")


@broker.command(short_help="Stop a broker, or all of them.")
@name_argument
@click.option("--all", "every", is_flag=True, help="Stop every local broker.")
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, metavar="SECONDS", help="Kill it if it has not stopped by then.")
def down(name: str, every: bool, timeout_s: float) -> None:
    """Stop the broker NAME (local), whoever started it. Its data stays.

    \b
    Examples:
      headwater broker down
      headwater broker down --all
    """
    names = _known() if every else [name]
    if not every and name not in _known():
        raise CommandFailed(f"there is no broker {name}: {_known_text()}")
    for one in names:
        with err.status(f"stopping broker {one}") if err.is_terminal else nullcontext():
            stopped = stop_broker(_folder(one), timeout_s)
        if stopped is not None:
            out.print(f"broker {one} at {stopped.bootstrap_servers} was stopped")
        elif not every:
            out.print(f"broker {one} does not run")


@broker.command(short_help="Show every local broker.")
@json_option
def status(as_json: bool) -> None:
    """Show every local broker: state, pid, address, memory, data on disk, uptime.

    \b
    Examples:
      headwater broker status
      headwater broker status --json
    """
    found = [_status(name) for name in _known()]
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no local broker yet: `headwater broker up` starts one")
        return
    table = Table("name", "state", "pid", "bootstrap servers", "memory", "data", "uptime", box=None, pad_edge=False, header_style="dim")
    for one in found:
        memory = decimal(one.resident_bytes) if one.resident_bytes is not None else ""
        style = {"running": "green", "silent": "red", "disk full": "bold red", "starting": "yellow"}.get(one.state, "dim")
        uptime = _duration(one.uptime_s) if one.uptime_s is not None else ""
        state = f"[{style}]{one.state}[/]"
        table.add_row(one.name, state, str(one.pid or ""), one.bootstrap_servers or "", memory, decimal(one.data_bytes), uptime)
    out.print(table)


@broker.command(short_help="Print a broker's log.")
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, until Ctrl-C.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(0), help="Lines to begin with.")
def logs(name: str, follow: bool, lines: int) -> None:
    """Print the log of the broker NAME (local): Kafka's warnings and errors.

    \b
    Examples:
      headwater broker logs
      headwater broker logs region -f -n 10
    """
    path = _folder(name) / "broker.log"
    if not path.exists():
        raise CommandFailed(f"there is no log {path}: {_known_text()}")
    for line in _tail(path, lines, follow):
        click.echo(shown(line, keep="\t"))  # what Kafka logs may hold what clients sent


def _folder(name: str) -> Path:
    return (local.home() / name).resolve()


def _known() -> list[str]:
    return local.names()


def _known_text() -> str:
    known = ", ".join(_known())
    return f"known are {known}" if known else "`headwater broker up` starts one"


def _choose_folder(name: str, data_dir: Path | None) -> Path:
    """The broker's folder: by its name, or the one asked for, which a link by its name remembers."""
    link = local.home() / name
    if data_dir is None:
        return link.resolve()
    folder = data_dir.resolve()
    if link.is_symlink() or not link.exists():
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink() or link.resolve() != folder:
                if link.is_symlink() and read_state(link.resolve()) is not None:
                    raise CommandFailed(f"broker {name} runs with its data in {link.resolve()}: stop it first, or take another name")
                link.unlink(missing_ok=True)
                link.symlink_to(folder, target_is_directory=True)
        except OSError as error:
            raise CommandFailed(f"{link} cannot be written: {error.strerror or error}. Set HEADWATER_DATA to another folder") from None
    elif link.resolve() != folder:
        raise CommandFailed(f"broker {name} has its data in {link}: move it to {folder} first, or take another name")
    return folder


def _say_ready(server: Broker, as_json: bool) -> None:
    if as_json:
        print_json(_describe(server.name, server.settings.folder))
        return
    out.print(f"broker [bold]{server.name}[/] is ready at [bold]{server.bootstrap_servers}[/]")
    out.print(f"  data  {server.settings.folder}\n  log   {server.log_path}", style="dim")
    stop = f"headwater broker down {server.name}" if server.detached else "Ctrl-C"
    out.print(f"  stop  {stop}", style="dim")
    if not _loopback(server.settings.host):
        err.print(f"whoever reaches {server.settings.host} can read and write it: keep it on a network that you trust", style="yellow")


def _say(text: str) -> None:
    """A line about a broker that runs."""
    err.print(text, style="bold red" if text.startswith("disk full") else "green", markup=False)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _status(name: str) -> BrokerStatus:
    """`_describe`, and whether it answers."""
    described = _describe(name, _folder(name))
    if described.state != "running" or described.bootstrap_servers is None:
        return described
    host, _, port = described.bootstrap_servers.rpartition(":")
    try:
        wait_answer(host.strip("[]"), int(port), timeout_s=ANSWER_S)
    except TimeoutError:
        return msgspec.structs.replace(described, state="silent")
    return described


def _describe(name: str, folder: Path) -> BrokerStatus:
    data = sum(blocks for path in (folder / "data").rglob("*") if (blocks := _disk_bytes(path)))
    plain = BrokerStatus(name=name, state="stopped", folder=str(folder), log=str(folder / "broker.log"), data_bytes=data)
    state = read_state(folder)
    process = state.process() if state else None
    if state is None or process is None:
        full = folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES
        return msgspec.structs.replace(plain, state="disk full") if full else plain
    try:
        resident, created = process.memory_info().rss, process.create_time()
    except psutil.Error:  # it ended meanwhile
        return plain
    return msgspec.structs.replace(
        plain,
        state="running" if state.ready else "starting",
        pid=state.pid,
        bootstrap_servers=state.bootstrap_servers,
        cluster_id=state.cluster_id,
        resident_bytes=resident,
        uptime_s=round(max(0.0, time.time() - created), 1),
    )


def _disk_bytes(path: Path) -> int:
    """What a file takes on the disk: Kafka's index files are mostly holes."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:  # Kafka deletes as we look
        return 0


def _duration(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    return f"{days}d {hours}h" if days else f"{hours}h {minutes}m" if hours else f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"


def _tail(path: Path, lines: int, follow: bool) -> Iterator[str]:
    """The last lines, then what is added; a log that was set aside and begun anew is read from its start."""
    file = path.open(encoding="utf-8", errors="replace")
    try:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=lines))
        rest = ""
        while follow:
            if chunk := file.read(1 << 16):
                *whole, rest = (rest + chunk).split("\n")
                yield from whole
                continue
            time.sleep(LOOK_S)
            try:
                now = path.stat()
            except FileNotFoundError:
                continue
            if now.st_ino != os.fstat(file.fileno()).st_ino or now.st_size < file.tell():
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
    finally:
        file.close()
