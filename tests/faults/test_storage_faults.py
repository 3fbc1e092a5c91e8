"""What brokers keep goes away: topics made anew, logs cut by a power cut, retention shorter than an outage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.faults.rounds import Fault, Row
from infra.faults.storage import STORAGE

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("fault", STORAGE, ids=[fault.name for fault in STORAGE])
def test_storage(under: Callable[..., Row], fault: Fault) -> None:
    under(fault, length_s=fault.length_s / 2)
