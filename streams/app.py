"""The Faust app of a role: its worker, its hot agent over a channel of batches, and cold agents under one wrapper.

The hot topics come from a `BatchSource`, beside Faust's own consumer and in a group of their own (measured: one hand-over a batch is
25 times faster than one event a record). They wait for nothing of Faust's but its agents: neither for its consumer to be given
partitions, which takes seconds where a worker joins others, nor while those are shared out anew.

Cold topics are Faust's own; since Faust acknowledges a record whose handler raised, every cold handler runs under `cold_agent`, which
retries, dead-letters and only then lets Faust acknowledge.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import faust
from faust.types import StreamT
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from schemas.config import SiteConfig
from schemas.errors import Fault
from streams import telemetry
from streams.batches import Batch, BatchSource
from streams.burial import bury
from streams.delivery import ATTEMPTS, Delivery, backoff_s, may_pass
from streams.message import Pairs
from streams.quarantine import Quarantine
from streams.sink import Sink
from streams.suspects import ProcessDied
from streams.topology import RoleView, Topic

log = logging.getLogger("headwater.app")

STOP_LIMIT_S = 25.0  # with a silent broker a stop has no end of its own

_SECURITY = (
    "sasl.mechanisms",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
)
_KNOWN = ", ".join(("security.protocol", *_SECURITY))


class UnsupportedSecurity(Fault, ValueError):
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
    if unknown := sorted(name for name in properties if name.startswith(("ssl.", "sasl.", "enable.ssl.")) and name not in _SECURITY):
        raise UnsupportedSecurity(f"kafka.properties has {', '.join(unknown)}: Faust's client has no counterpart. It takes {_KNOWN}")
    protocol = properties.get("security.protocol", "plaintext").lower()
    if protocol not in ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl"):
        raise UnsupportedSecurity(
            f"kafka.properties security.protocol is {protocol!r}: expected plaintext, ssl, sasl_plaintext or sasl_ssl"
        )
    context = _tls(properties) if protocol.endswith("ssl") else None
    if protocol == "ssl":
        return faust.SSLCredentials(context=context)
    if protocol == "plaintext":
        return None
    mechanism = properties.get("sasl.mechanisms") or properties.get("sasl.mechanism") or "GSSAPI"
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise UnsupportedSecurity(
            f"kafka.properties sasl.mechanisms is {mechanism!r}: Faust's client takes PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 here"
        )
    return faust.SASLCredentials(
        username=properties.get("sasl.username"), password=properties.get("sasl.password"), ssl_context=context, mechanism=mechanism
    )


def _tls(properties: Mapping[str, str]) -> ssl.SSLContext:
    def path(name: str) -> str | None:
        found = properties.get(name)
        if found is not None and not Path(found).is_file():
            raise UnsupportedSecurity(f"kafka.properties {name} is {found!r}: there is no such file")
        return found

    authorities, certificate, key = path("ssl.ca.location"), path("ssl.certificate.location"), path("ssl.key.location")
    try:
        context = ssl.create_default_context(cafile=authorities)
        if certificate is not None:
            # Without a password for an encrypted key, OpenSSL would ask the terminal for one.
            context.load_cert_chain(certificate, key, lambda: properties.get("ssl.key.password", ""))
    except OSError as error:  # an SSLError is one
        raise UnsupportedSecurity(
            f"kafka.properties ssl.ca.location, ssl.certificate.location or ssl.key.location cannot be used ({error.strerror or error}): "
            "expected PEM files that belong together, and ssl.key.password if the key is encrypted"
        ) from None
    if properties.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    if properties.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _HotChannel(faust.Channel[Batch]):
    """A channel that goes on while Faust's own consumer is given other partitions: Faust's own channels hold back what is put on them
    meanwhile, and throw away what they hold, since for them it would come again."""

    @property
    def queue(self) -> ThrowableQueue[Any]:
        if self._queue is None:
            self._queue = ThrowableQueue(maxsize=self.maxsize or 0, flow_control=FlowControlEvent(initially_suspended=False))
        return self._queue


def hot_agent(app: faust.App, name: str, delivery: Delivery, *, concurrency: int) -> Callable[[Batch], Awaitable[Any]]:
    """A Faust agent that delivers batches; returns the coroutine function that a `BatchSource` feeds.

    A failure that delivery does not absorb (too many dead letters, dead letters that cannot be written) stops the worker.
    """
    channel = _HotChannel(app, maxsize=1024)  # bounded in truth by the source's batches in flight

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
        await app.agents.wait_until_agents_started()  # before that nobody listens, and the channel would forget it
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
    *,
    quarantine: Quarantine | None = None,
) -> None:
    """An ordinary Faust agent over a declared topic, under the one wrapper: a handler that raises is tried again, without limit if the
    cause may pass, else `ATTEMPTS` times (a `ValueError` once: the record itself is wrong); then the record becomes a dead letter, as does
    one whose handler is proven to kill the process (`quarantine`). Only then Faust acknowledges it. By itself it would do so also for a
    record whose handler was stopped or whose dead letter was refused.
    """
    source = app.topic(topic.name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", allow_empty=True)

    guarded = handle if quarantine is None else _protected(handle, topic, quarantine)

    @app.agent(source, name=f"{agent}.{topic.base}")
    async def consume(stream: StreamT[bytes]) -> None:
        stream = cast(Any, stream).noack()
        async for event in stream.events():
            try:
                await _settle(ColdRecord(event.message), topic, dead_letters, guarded, sink, agent, quarantine)
            except Exception as error:  # no dead letter could be written; Faust alone would start the agent again and pass over the record
                log.critical("the agent stops: %s", error, extra={"agent": agent})
                await app.crash(error)
                raise
            await stream.ack(event)


def _protected(
    handle: Callable[[ColdRecord], Awaitable[None]], topic: Topic, quarantine: Quarantine
) -> Callable[[ColdRecord], Awaitable[None]]:
    """The handler under step 6: what it works on is marked, a suspect has the process for itself, and a guilty record is an error."""

    async def guarded(record: ColdRecord) -> None:
        async with aclosing(quarantine.portions(topic.name, record.partition(), [record])) as portions:
            async for _, alone in portions:
                if alone and (guilt := quarantine.guilt(record)) is not None:
                    if not quarantine.is_buried(record):
                        raise guilt
                    return
                async with quarantine.work(topic.name, record.partition(), [record], alone=alone):
                    await handle(record)

    return guarded


async def _settle(
    record: ColdRecord,
    topic: Topic,
    dead_letters: Topic,
    handle: Callable[[ColdRecord], Awaitable[None]],
    sink: Callable[[], Sink],
    agent: str,
    quarantine: Quarantine | None,
) -> None:
    attempt = 0
    while True:
        try:
            await handle(record)
        except Exception as error:
            attempt += 1
            telemetry.RETRIES.labels(type(error).__name__).inc()
            if may_pass(error) or (attempt < ATTEMPTS and not isinstance(error, ValueError | ProcessDied)):
                if attempt == 1:
                    log.warning("work failed and is tried again: %s", error, extra={"topic": topic.name, "offset": record.offset()})
                await asyncio.sleep(backoff_s(attempt))
                continue
            await bury(sink(), dead_letters, record, error, agent, None)
            if isinstance(error, ProcessDied) and quarantine is not None:
                quarantine.buried(record)
            telemetry.RECORDS.labels(topic.base, "rejected" if isinstance(error, ValueError) else "dead").inc()
            log.exception("dead letter", extra={"topic": topic.name, "partition": record.partition(), "offset": record.offset()})
        else:
            telemetry.RECORDS.labels(topic.base, "done").inc()
        return


class _Worker(faust.Worker):
    """Faust's worker with the services beside the app: they start first, since the app has started only when its own consumer has its
    partitions, and they stop first, so that the source is drained while the agents still work."""

    _deadline: threading.Timer | None = None

    def on_init_dependencies(self) -> list[Any]:
        super().on_init_dependencies()
        return [*self.services, self.app]

    async def on_startup_finished(self) -> None:
        await super().on_startup_finished()
        # What was imported and set up stays: a collector that looks through it again and again stops every thread for 0.1 s each time.
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        for service in self.services:
            if isinstance(service, Quarantine):
                service.stopping()
        if self._deadline is None:
            self._deadline = threading.Timer(STOP_LIMIT_S, _give_up)
            self._deadline.daemon = True
            self._deadline.start()
        for service in reversed(list(self.services)):
            await service.stop()
        await super().stop()

    def stopped(self) -> None:
        """The stop has come to its end by itself."""
        if self._deadline is not None:
            self._deadline.cancel()


def _give_up() -> None:
    """End the process at once: Faust's consumer waits minutes for a silent broker. What was not committed is read again."""
    log.critical("the worker did not stop in time and ends by force; what it did since its last commit is done again")
    logging.shutdown()
    os._exit(1)


def run_worker(app: faust.App, *services: BatchSource | Any) -> int:
    """Run a worker until SIGTERM, Ctrl-C or a failure; returns the exit code (0 for a clean stop). A stop that takes longer than
    `STOP_LIMIT_S` ends the process, with code 1.

    Raises
    ------
    Fault
        If the worker failed of something that a person must mend.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(app, *services, loop=loop, quiet=True, redirect_stdouts=False)
    worker.override_logging = False  # the process has its own
    worker.spinner = None
    sources = [service for service in services if isinstance(service, BatchSource)]
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        failed = [service.crash_reason for service in (app, *services) if service.crash_reason is not None]
        if (fault := next((reason for reason in failed if isinstance(reason, Fault)), None)) is not None:
            raise fault from None
        return 1 if failed or not isinstance(end.code, int | None) else end.code or 0
    finally:
        worker.stopped()
        for source in sources:
            source.leave()
    return 0
