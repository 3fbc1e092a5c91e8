"""Fixtures of the whole suite. The suite starts its own Kafka, once a run."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from infra.kafka.broker import Broker
from infra.kafka.settings import BrokerSettings
from schemas.config import Kafka


def pytest_sessionfinish() -> None:
    """What Kafka clients still say when their brokers are gone after the last test is nobody's; pytest's summary stands last."""
    logging.lastResort = logging.NullHandler()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs within a test sets the logs of the process up as it wants them; the next test finds them as they were."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {logger: logger.level for logger in _loggers()}
    yield
    root.handlers[:] = handlers
    for logger in _loggers():
        if logger in levels or logger.name.startswith("headwater"):
            logger.setLevel(levels.get(logger, logging.NOTSET))


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker on a free port, for the whole run; its heap holds the topics that a thousand tests leave behind."""
    with Broker(BrokerSettings(name="tests", folder=tmp_path_factory.mktemp("kafka"), port=0, heap_mb=1536)) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka(broker: Broker) -> Kafka:
    """The suite's Kafka, as a site's file names it: `kafka.bootstrap_servers`, or `Clients(kafka, "test")`."""
    return broker.kafka


@pytest.fixture
def prefix() -> str:
    """A prefix of topics and groups that no other test has, such as `t3f9a0c1b.`."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds: `eventually(lambda: ..., timeout_s=10)`; the test fails if it does not in time."""

    def wait(condition: Callable[[], bool], *, timeout_s: float = 20.0, every_s: float = 0.02) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"it did not come true within {timeout_s:g} s"
            time.sleep(every_s)

    return wait


@pytest.fixture(scope="session")
def kcat() -> str:
    """The path of kcat, a client that shares no Python with us; on Debian it is installed if it is not there."""
    found = shutil.which("kcat")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "kcat"]):
            subprocess.run(command, check=True, timeout=300, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        found = shutil.which("kcat")
    assert found is not None, "kcat is not on this machine: install it (Debian and Ubuntu: apt-get install kcat; macOS: brew install kcat)"
    return found
