"""The network between leaf and region, broken in every way that the proxy knows: nothing is lost, and alerts go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.faults.links import LINKS
from infra.faults.rounds import Fault, Row

pytestmark = pytest.mark.timeout(300)
SHARE = 0.4  # of the length of the long form


@pytest.mark.parametrize("fault", LINKS, ids=[fault.name for fault in LINKS])
def test_link(under: Callable[..., Row], fault: Fault) -> None:
    under(fault, length_s=fault.length_s * SHARE)
