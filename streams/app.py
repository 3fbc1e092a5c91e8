"""The Faust app of a role: its worker, its hot agent over a channel of batches, and cold agents under one wrapper.

The hot topics come from a `BatchSource`, beside Faust's own consumer and in a group of their own (measured: one hand-over a batch is
25 times faster than one event a record). Cold topics are Faust's own; since Faust acknowledges a record whose handler raised, every
cold handler runs under `cold_agent`, which retries, dead-letters and only then lets Faust acknowledge.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import faust
from faust.types import StreamT

from schemas.config import SiteConfig
from streams.batches import Batch, BatchSource
from streams.delivery import ATTEMPTS, Delivery, backoff_s, error_headers, may_pass
from streams.message import Pairs
from streams.sink import Output, Sink
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.app")


class UnsupportedSecurity(ValueError):
    """Security settings that Faust's own client cannot follow; the message names the setting."""


def make_app(config: SiteConfig, role: RoleView, folder: Path) -> faust.App:
    """The Faust app of one role of a site; its own files lie under `folder`."""
    data = folder / "faust" / role.role
    data.mkdir(parents=True, exist_ok=True)
    return faust.App(
        f"{role.group()}.faust",
        broker=[f"kafka://{server}" for server in config.kafka.bootstrap_servers.split(",")],
        broker_credentials=credentials(config.kafka.properties),
        broker_session_timeout=10,
        broker_heartbeat_interval=3,
        broker_client_id=role.group(),
        topic_replication_factor=config.topics.replication,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        store="memory://",
        datadir=str(data),
        web_enabled=False,
        worker_redirect_stdouts=False,
        stream_wait_empty=False,
    )


def credentials(properties: Mapping[str, str]) -> Any:
    """Faust's credentials for librdkafka's security settings, so that one place in the site's file serves every client.

    Raises
    ------
    UnsupportedSecurity
        For mechanisms that the other client has no counterpart of.
    """
    protocol = properties.get("security.protocol", "plaintext").lower()
    context = None
    if protocol in ("ssl", "sasl_ssl"):
        context = ssl.create_default_context(cafile=properties.get("ssl.ca.location"))
        if properties.get("ssl.endpoint.identification.algorithm", "https") == "none":
            context.check_hostname = False
        if properties.get("enable.ssl.certificate.verification", "true").lower() == "false":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if certificate := properties.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, properties.get("ssl.key.location"), properties.get("ssl.key.password"))
    if protocol == "ssl":
        return faust.SSLCredentials(context=context)
    if protocol.startswith("sasl"):
        mechanism = properties.get("sasl.mechanisms") or properties.get("sasl.mechanism") or "GSSAPI"
        if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            raise UnsupportedSecurity(
                f"kafka.properties sasl.mechanisms is {mechanism!r}: Faust's client takes PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 here"
            )
        return faust.SASLCredentials(
            username=properties.get("sasl.username"), password=properties.get("sasl.password"), ssl_context=context, mechanism=mechanism
        )
    if protocol != "plaintext":
        raise UnsupportedSecurity(
            f"kafka.properties security.protocol is {protocol!r}: expected plaintext, ssl, sasl_plaintext or sasl_ssl"
        )
    return None


def hot_agent(app: faust.App, name: str, delivery: Delivery, *, concurrency: int) -> Callable[[Batch], Awaitable[Any]]:
    """A Faust agent that delivers batches; returns the coroutine function that a `BatchSource` feeds.

    A failure that delivery does not absorb (too many dead letters, dead letters that cannot be written) stops the worker.
    """
    channel = app.channel(maxsize=1024)  # bounded in truth by the source's batches in flight

    @app.agent(channel, name=name, concurrency=concurrency)
    async def deliver(stream: StreamT[Batch]) -> None:
        async for batch in stream:
            try:
                await delivery.run(batch)
            except Exception as error:
                log.critical("the agent stops: %s", error, extra={"agent": name})
                await app.crash(error)
                raise

    async def feed(batch: Batch) -> None:
        await channel.put(cast(Any, batch))

    return feed


class ColdRecord:
    """A Faust event's message with the accessors of a librdkafka message, so that dead letters are written by one code."""

    def __init__(self, message: Any) -> None:
        self._message = message

    def topic(self) -> str:
        return str(self._message.topic)

    def partition(self) -> int:
        return int(self._message.partition)

    def offset(self) -> int:
        return int(self._message.offset)

    def key(self) -> bytes | None:
        return self._message.key  # type: ignore[no-any-return]

    def value(self) -> bytes | None:
        return self._message.value  # type: ignore[no-any-return]

    def headers(self) -> Pairs:
        headers = self._message.headers or ()
        return list(headers.items() if isinstance(headers, Mapping) else headers)

    def timestamp(self) -> tuple[int, int]:
        return int(self._message.timestamp_type), round(self._message.timestamp * 1000)


def cold_agent(
    app: faust.App,
    topic: Topic,
    dead_letters: Topic,
    handle: Callable[[ColdRecord], Awaitable[None]],
    sink: Callable[[], Sink],
    agent: str,
) -> None:
    """An ordinary Faust agent over a declared topic, under the one wrapper: a handler that raises is tried again, without limit if the
    cause may pass, else `ATTEMPTS` times; then the record becomes a dead letter. Only then Faust acknowledges it."""
    source = app.topic(topic.name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", allow_empty=True)

    @app.agent(source, name=f"{agent}.{topic.base}")
    async def consume(stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            record = ColdRecord(event.message)
            attempt = 0
            while True:
                try:
                    await handle(record)
                    break
                except Exception as error:
                    attempt += 1
                    if may_pass(error) or (attempt < ATTEMPTS and not isinstance(error, ValueError)):
                        await asyncio.sleep(backoff_s(attempt))
                        continue
                    headers = [*record.headers(), *error_headers(record, error, agent, None)]
                    await sink().write([Output(dead_letters, "", record.key(), record.value(), headers)])
                    log.exception("dead letter", extra={"topic": topic.name, "offset": record.offset()})
                    break


class _Worker(faust.Worker):
    """Faust's worker with the app before the services: so it starts when the channels flow, and a stop drains the source first."""

    def on_init_dependencies(self) -> list[Any]:
        super().on_init_dependencies()
        return [self.app, *self.services]


def run_worker(app: faust.App, *services: BatchSource | Any) -> int:
    """Run a worker until SIGTERM, Ctrl-C or a failure; returns the exit code (0 for a clean stop)."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(app, *services, loop=loop, quiet=True, redirect_stdouts=False)
    worker.override_logging = False  # the process has its own
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        failed = [service for service in (app, *services) if service.crash_reason is not None]
        return 1 if failed else int(end.code or 0)
    return 0
