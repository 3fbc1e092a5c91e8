"""Whether a region answers, as its clients' statistics and acknowledgements tell it, under a clock that the test turns."""

from __future__ import annotations

import json
from typing import Any

from schemas.links import Breaker
from streams.link.wire import SILENT_S, Wire


class Told:
    """A wire whose judge has said what the test wants it to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wire = Wire(clock=lambda: self.now)
        self._report = self.wire.watch("urgent", judge=True)

    def say(self, *, state: str = "UP", answers: int = 0, waiting: int = 0) -> Breaker:
        broker: dict[str, Any] = {"state": state, "rx": answers, "waitresp_cnt": waiting, "outbuf_cnt": 0, "waitresp_msg_cnt": 0}
        self._report(json.dumps({"type": "producer", "brokers": {"b": broker}, "txbytes": 0, "rxbytes": 0, "msg_cnt": 0}))
        return self.wire.breaker


def test_a_connection_makes_it_half_open_an_answer_closes_it_and_silence_opens_it() -> None:
    told = Told()
    assert told.wire.breaker is Breaker.OPEN
    assert told.say(state="CONNECT") is Breaker.OPEN
    assert told.say(waiting=1) is Breaker.HALF_OPEN
    assert told.say(answers=1) is Breaker.CLOSED
    assert told.say(answers=1, waiting=1) is Breaker.CLOSED
    told.now += SILENT_S
    assert told.say(answers=1, waiting=1) is Breaker.OPEN
    assert told.say(answers=2) is Breaker.CLOSED
    assert told.say(answers=2, state="DOWN") is Breaker.OPEN


def test_an_acknowledgement_closes_it_at_once_and_the_next_statistics_do_not_undo_that() -> None:
    told = Told()
    told.say(answers=1)
    told.now += 60
    assert told.say(answers=1, waiting=1) is Breaker.OPEN
    told.wire.acknowledged()
    assert told.wire.breaker is Breaker.CLOSED
    assert told.say(answers=1, waiting=1) is Breaker.CLOSED
    told.now += SILENT_S
    assert told.say(answers=1, waiting=1) is Breaker.OPEN
