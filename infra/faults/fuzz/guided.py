"""Fuzzing guided by coverage (atheris, libFuzzer): `python -m infra.faults.fuzz.guided NAME FOLDER SECONDS SEED`, one harness a process.
NAME `all` takes all of them by turns, to see that they run.

What raises against its law is saved and fuzzing goes on; a native crash, a hang or too much memory ends the process, and libFuzzer leaves
the input as `FOLDER/NAME-crash-…`, `-timeout-…` or `-oom-…`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from infra.faults.fuzz.harness import Harness

SLOW_S = 4.0  # instrumented code is slower: what takes so long is tried again without
MAX_LEN = 100_000
RSS_MB = 2048
HANG_S = 25
FINDINGS = "findings.jsonl"
ALL = "all"


def _union(all_harnesses: list[Harness]) -> Harness:
    """All harnesses as one: the first byte of an input says which."""

    def check(data: bytes) -> None:
        if data:
            all_harnesses[data[0] % len(all_harnesses)].check(data[1:])

    def seeds() -> Iterator[bytes]:
        for number, each in enumerate(all_harnesses):
            for data in list(each.seeds())[:3]:
                yield bytes([number]) + data

    return Harness(ALL, check, seeds, 1.0)


def main(name: str, folder: str, seconds: str, seed: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["schemas", "streams", "agents", "infra"], enable_loader_override=False):
        from infra.faults.fuzz.all import harnesses
    import logging

    import msgspec

    from infra.faults.fuzz.mutate import mutate
    from infra.faults.fuzz.trial import attempt, save

    logging.disable(logging.CRITICAL)
    home = Path(folder)
    harness = _union(harnesses()) if name == ALL else next(each for each in harnesses() if each.name == name)
    corpus = home / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = list(harness.seeds())
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    known: set[str] = set()

    def one_input(data: bytes) -> None:
        finding = attempt(harness, data, limit_s=SLOW_S, alarm_s=0)  # libFuzzer has an alarm of its own
        if finding is not None and (key := f"{finding.error.partition(':')[0]} {finding.place}") not in known:
            known.add(key)
            with (home / FINDINGS).open("ab") as told:
                told.write(msgspec.json.encode(save(home / "findings", finding, data)) + b"\n")

    def changed(data: bytes, max_size: int, number: int) -> Any:
        random = Random(number)  # noqa: S311 - libFuzzer decides it
        if random.random() < 0.5:
            return atheris.Mutate(data, max_size)
        return mutate(bytes(data), random, seeds, max_size)

    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": MAX_LEN,
        "rss_limit_mb": RSS_MB,
        "malloc_limit_mb": RSS_MB // 2,
        "timeout": HANG_S,
        "print_final_stats": 1,
        "handle_int": 0,
        "artifact_prefix": home / "findings" / f"{name}-",
    }
    (home / "findings").mkdir(exist_ok=True)
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], one_input, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
