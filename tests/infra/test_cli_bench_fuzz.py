"""`headwater bench fuzz` as a person uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.faults.fuzz.harness import GAP

Headwater = Callable[..., Any]


def test_it_names_its_harnesses_and_refuses_unknown_ones(headwater: Headwater) -> None:
    names = headwater("bench", "fuzz", "--list").out.split()
    assert {"jpeg", "look", "video", "config", "record.Verdict", "shown-record"} <= set(names)
    assert json.loads(headwater("bench", "fuzz", "--list", "--json").out) == names
    ran = headwater("bench", "fuzz", "--harness", "jpg")
    assert ran.code == 2
    assert "there is no harness jpg" in ran.err


def test_a_saved_input_is_tried_again(headwater: Headwater, tmp_path: Path) -> None:
    path = tmp_path / "input.bin"
    path.write_bytes(GAP.join((b"\xff\xd8\xff", b"cam-1", b"ce_id\x02x")))
    ran = headwater("bench", "fuzz", "--harness", "frame", "--replay", path)
    assert (ran.code, ran.out) == (0, "it holds\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_short_run_prints_its_table_and_keeps_its_corpus(headwater: Headwater, tmp_path: Path) -> None:
    ran = headwater("bench", "fuzz", "--minutes", "0.1", "--harness", "record-id", "--folder", tmp_path, "--json")
    assert ran.code == 0, ran.err
    (outcome,) = json.loads(ran.out)
    assert outcome["harness"] == "record-id"
    assert outcome["executions"] > 50
    assert outcome["findings"] == []
    assert list((tmp_path / "corpus" / "record-id").iterdir())
