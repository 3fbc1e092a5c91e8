"""Records that are damaged, foreign, too large, repeated, out of order or read again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.faults.records import RECORDS
from infra.faults.rounds import Fault, Row

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("fault", RECORDS, ids=[fault.name for fault in RECORDS])
def test_records(under: Callable[..., Row], fault: Fault) -> None:
    under(fault)
