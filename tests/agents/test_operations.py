"""A running site is worked on: cameras and workers come and go, and nothing else is started again. Real Kafka, real processes; what became
of every frame is judged by a plain consumer against what the test itself has published."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from infra.cli.run import NEEDS_A_PERSON

LIMIT_S = 60.0
PATIENT = {"max_age_ms": 60_000}  # no frame is stale here: each has an answer, or it is lost


def assigned(process_log: str) -> list[int]:
    """How many partitions of its hot topics a worker got, each time that it got any."""
    return [int(line.rsplit("partitions=", 1)[1]) for line in process_log.splitlines() if "headwater.batches: partitions assigned" in line]


class Shooting:
    """Frames of some cameras, several times a second, from a thread of its own; cameras come and go."""

    def __init__(self, tools: ModuleType, leaf: Any, street: list[bytes]) -> None:
        self._make: Callable[[str], Any] = lambda source: tools.Camera(leaf, street, source)
        self._lock = threading.Lock()
        self._cameras: dict[str, Any] = {}
        self.ids: dict[str, list[str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def add(self, source: str) -> None:
        with self._lock:
            self._cameras[source] = self._make(source)

    def remove(self, source: str) -> None:
        with self._lock:
            self.ids[source] = list(self._cameras.pop(source).manifest)

    def taken(self, source: str) -> list[str]:
        with self._lock:
            return self.ids.get(source) or list(self._cameras[source].manifest)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            with self._lock:
                for camera in self._cameras.values():
                    camera.shoot(1)

    @contextmanager
    def running(self, *sources: str) -> Iterator[Shooting]:
        for source in sources:
            self.add(source)
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(LIMIT_S)
            for source in list(self._cameras):
                self.remove(source)

    def everything(self) -> set[str]:
        return {record for ids in self.ids.values() for record in ids}


def test_cameras_and_workers_come_and_go_while_the_rest_goes_on(
    tools: ModuleType, site: Callable[..., Any], street: list[bytes], nanodet: Any
) -> None:
    leaf = site(ingress=PATIENT)
    reader = tools.Reader(leaf, "verdicts", "results", "drops", "frames.dlq")
    first, resolver = leaf.start("agent"), leaf.start("resolver")
    shooting = Shooting(tools, leaf, street)

    def answered(source: str) -> int:
        return sum(value["source"] == source for value in reader.values("verdicts"))

    with shooting.running("cam-1", "cam-3"):
        reader.until(lambda: answered("cam-1") >= 3 and answered("cam-3") >= 3, "the cameras that are there are answered")

        before = answered("cam-1")
        shooting.add("cam-2")
        reader.until(lambda: answered("cam-2") >= 3 and answered("cam-1") > before, "a camera that comes is answered, and the others go on")
        assert assigned(leaf.log(first)) == [2]  # nobody had to begin anew

        shooting.remove("cam-3")
        reader.until(lambda: answered("cam-3") == len(shooting.taken("cam-3")), "what a camera has sent before it went is answered")

        second = leaf.start("agent")
        reader.until(
            lambda: assigned(leaf.log(second))[-1:] == [1] and assigned(leaf.log(first))[-1:] == [1], "the workers share the partitions"
        )
        before, others = answered("cam-1"), answered("cam-2")
        reader.until(lambda: answered("cam-1") > before + 2 and answered("cam-2") > others + 2, "both cameras are answered by two workers")

        second.send_signal(signal.SIGTERM)
        assert second.wait(LIMIT_S) == 0, leaf.logs()
        reader.until(lambda: assigned(leaf.log(first))[-1:] == [2], "the first has all again")
        before, others = answered("cam-1"), answered("cam-2")
        reader.until(lambda: answered("cam-1") > before + 2 and answered("cam-2") > others + 2, "both cameras are answered by one worker")
    reader.until(lambda: shooting.everything() <= reader.ids("results"), "every frame has a result")
    assert (first.poll(), resolver.poll()) == (None, None)
    reader.close()
    assert reader.ids("results") == shooting.everything()
    assert (reader.records["drops"], reader.records["frames.dlq"]) == ([], [])
    truth = {jpeg: tools.seen_in(nanodet.look(jpeg).detections.to_json()) for jpeg in street}
    for result in reader.latest("results"):  # whoever judged it
        assert tools.seen_in(result["detections"]) == truth[street[int(result["id"].rsplit("/", 1)[1]) % len(street)]]


def test_resolvers_of_two_numbers_share_the_work_and_one_number_is_refused_twice(
    tools: ModuleType, site: Callable[..., Any], street: list[bytes]
) -> None:
    leaf = site(ingress=PATIENT)
    reader = tools.Reader(leaf, "results")
    leaf.start("agent")
    first = leaf.start("resolver")
    shooting = Shooting(tools, leaf, street)
    with shooting.running("cam-1", "cam-2"):
        reader.until(lambda: len(reader.ids("results")) >= 4, "the first resolver works")
        again = leaf.start("resolver", expected=NEEDS_A_PERSON)
        assert again.wait(LIMIT_S) == NEEDS_A_PERSON
        assert "resolver 1 of leaf-1 runs on this machine already" in leaf.log(again)
        assert "--instance 2" in leaf.log(again)
        second = leaf.start("resolver", "--instance", "2")
        reader.until(lambda: assigned(leaf.log(second)) and len(assigned(leaf.log(first))) == 2, "the second has its share")
        before = len(reader.ids("results"))
        reader.until(lambda: len(reader.ids("results")) > before + 4, "both go on")
        second.send_signal(signal.SIGTERM)
        assert second.wait(LIMIT_S) == 0, leaf.logs()
    reader.until(lambda: shooting.everything() <= reader.ids("results"), "the first takes over what the second had")
    assert first.poll() is None
    reader.close()
    written: dict[str, list[str]] = {}
    for value in reader.values("results"):
        written.setdefault(value["id"], []).append(value["order"])
    assert all(orders == sorted(set(orders)) for orders in written.values())  # each written once, and none that was not better


def test_a_leaf_whose_model_is_missing_starts_and_is_mended_while_it_runs(
    tools: ModuleType, site: Callable[..., Any], street: list[bytes], nanodet: Any, tmp_path: Any
) -> None:
    """No model, no region: every frame is an explained drop, until the file appears."""
    from infra.assets.models import models_folder

    path = tmp_path / "nanodet.onnx"
    leaf = site(ingress=PATIENT, detector={"model": str(path), "sizes": [224]})
    reader = tools.Reader(leaf, "verdicts", "drops")
    agent = leaf.start("agent")
    shooting = Shooting(tools, leaf, street)
    with shooting.running("cam-1"):
        reader.until(lambda: len(reader.dropped()) >= 2, "frames that nobody can judge are explained")
        assert {drop["reason"] for drop in reader.values("drops")} == {"no-engine"}
        assert "no model works" in leaf.log(agent)
        path.write_bytes((models_folder() / "nanodet-g-r1-int8-224.onnx").read_bytes())
        reader.until(lambda: len(reader.ids("verdicts")) >= 2, "frames are judged when the model is there")
    reader.until(lambda: shooting.everything() <= reader.ids("verdicts") | reader.dropped(), "every frame is answered or explained")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(LIMIT_S) == 0, leaf.logs()
    reader.close()
    assert not reader.ids("verdicts") & reader.dropped()
    for verdict in reader.values("verdicts"):
        assert verdict["model"] == "nanodet 224"
        jpeg = street[int(verdict["id"].rsplit("/", 1)[1]) % len(street)]
        assert tools.seen_in(verdict["detections"]) == tools.seen_in(nanodet.look(jpeg).detections.to_json())
