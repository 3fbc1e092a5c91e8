"""What the logs leave out, so that what matters is seen."""

from __future__ import annotations

import logging

from infra.logs import NoRepeats


def _passes(only: NoRepeats, name: str, told: str) -> bool:
    return only.filter(logging.LogRecord(name, logging.ERROR, __file__, 1, told, None, None))


def test_a_library_says_the_same_once_a_while_and_we_as_often_as_we_do() -> None:
    now = [0.0]
    only = NoRepeats(lambda: now[0])
    refused = "Unable connect to node with id {}: [Errno 111] Connect call failed ('127.0.0.1', {})"
    assert [_passes(only, "aiokafka", refused.format(1, 9000 + port)) for port in range(3)] == [True, False, False]
    assert _passes(only, "aiokafka.consumer", refused.format(1, 9000))  # another that says it
    assert _passes(only, "aiokafka", "Heartbeat failed")  # something else
    assert [_passes(only, "headwater.librdkafka", "FAIL") for _ in range(2)] == [True, False]
    assert all(_passes(only, "headwater.link", "the region is away") for _ in range(2))
    now[0] = only.AGAIN_S
    assert _passes(only, "aiokafka", refused.format(1, 9000))


def test_what_it_remembers_is_bounded() -> None:
    only = NoRepeats(lambda: 0.0)
    for number in range(2 * only.KINDS):
        _passes(only, f"mode.{number}", "it waits")
    assert len(only._said) == only.KINDS
