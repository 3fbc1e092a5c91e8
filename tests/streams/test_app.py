"""The Faust worker as a process of its own: how it ends, what it has committed by then, and what its cold agents do with bad records."""

from __future__ import annotations

import contextlib
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faust
import pytest

from schemas.config import Kafka, SiteConfig, Topics
from streams.app import UnsupportedSecurity, credentials
from streams.clients import Clients
from streams.cluster import create_topics
from streams.topology import Role, Topology

LIMIT_S = 60.0

# A leaf's agent without models: `frames` are echoed to `verdicts`, `control` is a cold topic; values say what goes wrong.
WORKER = """
import asyncio, collections, logging, pathlib, sys
import streams.app, streams.batches
from schemas.config import Kafka, SiteConfig, Topics
from streams.app import cold_agent, hot_agent, make_app, run_worker
from streams.batches import BatchSource
from streams.clients import Clients
from streams.delivery import Delivery, Emitted, MayPass
from streams.sink import Output, Sink, SinkBroken
from streams.topology import Role, Topology

streams.app.STOP_LIMIT_S, streams.batches.STOP_S = float(sys.argv[4]), float(sys.argv[4]) / 3
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
servers, prefix, folder = sys.argv[1:4]
config = SiteConfig(name="leaf-1", tier="leaf", kafka=Kafka(bootstrap_servers=servers), topics=Topics(prefix=prefix, partitions=2))
role = Topology(config).role(Role.LEAF)
clients = Clients(config.kafka, "worker")
sink = Sink(clients)
app = make_app(config, role, pathlib.Path(folder))
attempts = collections.Counter()

async def work(topic, partition, records):
    for index, record in enumerate(records):
        if record.value() == b"slow":
            print("slow begins", flush=True)
            await asyncio.sleep(1)
        yield Emitted(index, (Output(role.write("verdicts"), "", record.key(), record.value(), []),))

async def heed(record):
    value = record.value()
    attempts[value] += 1
    print(f"heard {value.decode()} {attempts[value]}", flush=True)
    if value.startswith(b"bad") or (value.startswith(b"once") and attempts[value] == 1):
        raise RuntimeError("no use")
    if value.startswith(b"invalid"):
        raise ValueError("not a value")
    if value.startswith(b"busy") and attempts[value] < 6:
        raise MayPass("busy")
    if value.startswith(b"hang"):
        raise MayPass("for ever")

def letters(topic):
    return role.write(f"{topic.base}.dlq")

class Dying(Delivery):
    async def run(self, batch):
        if any(record.value() == b"fatal" for record in batch.records):
            batch.take()
            batch.fail()
            raise RuntimeError("the agent dies")
        await super().run(batch)

def cold_sink():
    if attempts[b"invalid unwritable"]:
        raise SinkBroken("no dead letters can be written")
    return sink

cold_agent(app, role.read("control"), role.write("control.dlq"), heed, cold_sink, "test")
hot = hot_agent(app, "hot", Dying(sink, work, letters, "test"), concurrency=2)
source = BatchSource(clients, [role.read("frames")], role.group(), hot, max_records=20)
code = run_worker(app, source)
sink.close()
print("ended", code, flush=True)
sys.exit(code)
"""


class Worker:
    """The process, with what it says on its standard output."""

    def __init__(self, servers: str, prefix: str, folder: Path, stop_s: float) -> None:
        folder.mkdir(exist_ok=True)
        self.out, self.log = folder / "out.txt", folder / "log.txt"
        script = folder / "worker.py"
        script.write_text(WORKER)
        with self.out.open("wb") as out, self.log.open("wb") as log:
            argv = [sys.executable, str(script), servers, prefix, str(folder / "state"), str(stop_s)]
            self.process = subprocess.Popen(argv, stdout=out, stderr=log, stdin=subprocess.DEVNULL)

    def said(self) -> list[str]:
        return self.out.read_text().splitlines()

    def heard(self) -> Counter[str]:
        return Counter(line.split()[1] for line in self.said() if line.startswith("heard "))

    def end(self, number: signal.Signals | None = signal.SIGTERM, limit_s: float = LIMIT_S) -> int:
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the worker did not end within {limit_s:g} s:\n{self.log.read_text()[-4000:]}")


class Site:
    """A leaf's topics on one cluster, and workers on them."""

    def __init__(self, rig: Any, servers: str, folder: Path) -> None:
        self.rig, self.servers, self.folder = rig, servers, folder
        config = SiteConfig(name="leaf-1", tier="leaf", kafka=rig.kafka, topics=Topics(prefix=rig.prefix, partitions=2))
        self.topology = Topology(config)
        create_topics(self.topology, Clients(rig.kafka, "test"))
        role = self.topology.role(Role.LEAF)
        self.frames, self.verdicts = role.read("frames"), role.write("verdicts")
        self.control, self.letters = role.read("control"), role.write("control.dlq")
        self.group = role.group()
        self.workers: list[Worker] = []

    def worker(self, stop_s: float = LIMIT_S) -> Worker:
        self.workers.append(Worker(self.servers, self.rig.prefix, self.folder / f"worker{len(self.workers)}", stop_s))
        return self.workers[-1]

    def echoed(self) -> Counter[bytes]:
        return Counter(row.value() for row in self.rig.rows(self.verdicts))

    def put(self, values: list[bytes]) -> None:
        self.rig.put(self.frames, values, 0)

    def tell(self, values: list[str]) -> None:
        self.rig.put(self.control, [(b"leaf-1", value.encode(), [("h", b"1")]) for value in values])


@contextlib.contextmanager
def sited(rig: Any, servers: str, folder: Path) -> Iterator[Site]:
    site = Site(rig, servers, folder)
    try:
        yield site
    finally:
        for worker in site.workers:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()


@pytest.fixture
def site(rig: Any, tmp_path: Path) -> Iterator[Site]:
    with sited(rig, rig.servers, tmp_path) as found:
        yield found


def test_a_worker_serves_hot_and_cold_topics_and_ends_cleanly(site: Site) -> None:
    """SIGTERM: exit code 0, everything that was finished is committed; bad cold records are dead letters, those behind them are heard."""
    values = [b"%d" % number for number in range(500)]
    site.put(values[:300])
    site.tell(["first", "once", "bad", "busy", "invalid", "last"])
    worker = site.worker()
    site.rig.until(lambda: worker.heard()["last"] and len(site.echoed()) == 300, "the first records", LIMIT_S)
    site.put(values[300:])
    site.rig.until(lambda: len(site.echoed()) == 500, "all records", LIMIT_S)
    site.tell(["hang"])
    site.put([b"slow"])
    site.rig.until(lambda: worker.heard()["hang"] and "slow begins" in worker.said(), "work that is under way at the end", LIMIT_S)
    assert worker.end() == 0
    assert worker.said()[-1] == "ended 0"
    assert site.echoed() == Counter([*values, b"slow"])  # what is in work is finished first
    assert site.rig.committed(site.group, site.frames) == {0: 501}
    assert site.rig.committed(f"{site.group}.faust", site.control).get(0) == 6  # not the one that was still tried again
    assert set(worker.heard()) == {"first", "once", "bad", "busy", "invalid", "last", "hang"}
    assert [worker.heard()[value] for value in ("first", "once", "bad", "busy", "invalid", "last")] == [1, 2, 3, 6, 1, 1]
    letters = site.rig.rows(site.letters)
    assert [letter.value() for letter in letters] == [b"bad", b"invalid"]
    headers = dict(letters[0].headers())
    assert headers["h"] == b"1"
    assert headers["__connect.errors.topic"].decode() == site.control.name
    assert headers["__connect.errors.offset"] == b"2"
    assert letters[0].key() == b"leaf-1"


@pytest.mark.parametrize("compression", ["zstd", "lz4", "snappy", "gzip"])
def test_a_compressed_batch_is_heard(site: Site, compression: str) -> None:
    """Whoever tells the leaf something may compress it, and MirrorMaker or a broker's own setting may."""
    producer = Clients(site.rig.kafka, "test").producer(linger_ms=200, **{"compression.type": compression})
    for number in range(20):
        producer.produce(site.control.name, key=b"leaf-1", value=b"number%d%s" % (number, b"x" * 200))
    assert producer.flush(20) == 0
    worker = site.worker()
    site.rig.until(lambda: len(worker.heard()) == 20, "the batch", LIMIT_S)


def test_a_cold_record_that_cannot_be_buried_ends_the_worker(site: Site) -> None:
    site.tell(["first", "invalid unwritable", "behind"])
    worker = site.worker()
    assert worker.end(None) == 1
    assert "no dead letters can be written" in worker.log.read_text()
    assert site.rig.committed(f"{site.group}.faust", site.control).get(0, 0) <= 1
    assert set(worker.heard()) == {"first", "invalid"}


def test_an_agent_that_dies_ends_the_worker_with_exit_code_1(site: Site) -> None:
    """Nothing beyond the failure is committed, and the end does not wait for it. A cold record in work is not acknowledged by the end."""
    site.put([b"%d" % number for number in range(100)])
    site.tell(["first", "hang", "behind"])
    worker = site.worker()
    site.rig.until(lambda: worker.heard()["hang"] and len(site.echoed()) == 100, "the first records", LIMIT_S)
    site.rig.until(lambda: site.rig.committed(site.group, site.frames) == {0: 100}, "their commit")
    site.put([b"fatal", b"beyond"])
    assert worker.end(None) == 1
    assert "the agent dies" in worker.log.read_text()
    assert site.rig.committed(site.group, site.frames) == {0: 100}
    assert site.rig.committed(f"{site.group}.faust", site.control).get(0, 0) <= 1
    assert not site.rig.rows(site.letters)


def test_a_silent_broker_ends_no_work_and_delays_no_stop(far: Any, far_rig: Any, tmp_path: Path) -> None:
    """The way to the broker goes black under load: the worker goes on when it is back; when it is not, SIGTERM still ends it."""
    with sited(far_rig, far.wan.bootstrap_servers, tmp_path) as site:
        values = [b"%d" % number for number in range(400)]
        site.put(values[:200])
        site.tell(["first"])
        worker = site.worker(stop_s=2.0)
        site.rig.until(lambda: worker.heard()["first"] and len(site.echoed()) == 200, "the first records", LIMIT_S)
        far.proxy.cut()
        site.put(values[200:])
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(1)
        far.proxy.restore()
        site.rig.until(lambda: len(site.echoed()) == 400, "the records of the outage", LIMIT_S)
        far.proxy.cut()
        site.put([b"unread"])
        assert worker.end(limit_s=15.0) == 1
    assert set(site.echoed()) == set(values)


# ---- security settings, without a broker


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, its key, and the key again under a password."""
    folder = tmp_path_factory.mktemp("pem")
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test -keyout key.pem -out cert.pem"
    for command in (new, "openssl pkcs8 -topk8 -in key.pem -out locked.pem -v2 aes256 -passout pass:secret"):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=LIMIT_S)
    return folder


def test_without_settings_there_are_no_credentials() -> None:
    assert credentials({}) is None
    assert credentials({"security.protocol": "PLAINTEXT", "socket.keepalive.enable": "true"}) is None


def test_tls_settings_become_a_context(pem: Path) -> None:
    found = credentials({"security.protocol": "SSL", "ssl.ca.location": str(pem / "cert.pem")})
    assert isinstance(found, faust.SSLCredentials)
    assert found.context.verify_mode == ssl.CERT_REQUIRED
    assert found.context.check_hostname
    assert len(found.context.get_ca_certs()) == 1
    lax = credentials(
        {"security.protocol": "ssl", "ssl.ca.location": str(pem / "cert.pem"), "ssl.endpoint.identification.algorithm": "none"}
    )
    assert (lax.context.verify_mode, lax.context.check_hostname) == (ssl.CERT_REQUIRED, False)
    blind = credentials({"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"})
    assert (blind.context.verify_mode, blind.context.check_hostname) == (ssl.CERT_NONE, False)


def test_a_client_certificate_is_used_and_a_locked_key_never_asks_the_terminal(pem: Path) -> None:
    mutual = {"security.protocol": "ssl", "ssl.ca.location": str(pem / "cert.pem"), "ssl.certificate.location": str(pem / "cert.pem")}
    assert credentials({**mutual, "ssl.key.location": str(pem / "key.pem")}) is not None
    locked = {**mutual, "ssl.key.location": str(pem / "locked.pem")}
    assert credentials({**locked, "ssl.key.password": "secret"}) is not None
    for wrong in ({}, {"ssl.key.password": "wrong"}):
        with pytest.raises(UnsupportedSecurity, match=r"ssl\.key\.password"):
            credentials({**locked, **wrong})
    with pytest.raises(UnsupportedSecurity, match=r"ssl\.ca\.location is '/nowhere"):
        credentials({"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"})


@pytest.mark.parametrize(("protocol", "tls"), [("SASL_PLAINTEXT", False), ("SASL_SSL", True)])
@pytest.mark.parametrize(("name", "mechanism"), [("sasl.mechanisms", "PLAIN"), ("sasl.mechanism", "SCRAM-SHA-512")])
def test_sasl_settings_become_credentials(protocol: str, tls: bool, name: str, mechanism: str) -> None:
    found = credentials({"security.protocol": protocol, name: mechanism, "sasl.username": "joe", "sasl.password": "secret"})
    assert isinstance(found, faust.SASLCredentials)
    assert (found.username, found.password, found.mechanism.value) == ("joe", "secret", mechanism)
    assert (found.ssl_context is not None) == tls
    assert found.protocol.value == protocol


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"security.protocol": "kerberos"}, "security.protocol"),
        ({"security.protocol": "sasl_ssl"}, "GSSAPI"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanisms": "OAUTHBEARER"}, "OAUTHBEARER"),
        ({"security.protocol": "ssl", "ssl.ca.pem": "-----BEGIN"}, "ssl.ca.pem"),
        ({"security.protocol": "ssl", "ssl.keystore.location": "/x"}, "ssl.keystore.location"),
    ],
)
def test_settings_that_fausts_client_cannot_follow_are_refused_by_name(properties: dict[str, str], named: str) -> None:
    """Left out silently, they would weaken or break the connection of one of the two clients."""
    with pytest.raises(UnsupportedSecurity, match=named.replace(".", r"\.")) as found:
        credentials(properties)
    assert "BEGIN" not in str(found.value)
    assert Kafka(properties=properties) is not None
