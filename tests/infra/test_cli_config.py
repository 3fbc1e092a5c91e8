"""`headwater config`: written, checked, shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.config import SiteConfig, parse

Run = Callable[..., Any]
LEAF = 'name = "leaf-1"\ntier = "leaf"\n'


def test_init_writes_the_defaults_and_keeps_what_is_there(headwater: Run, tmp_path: Path) -> None:
    path = tmp_path / "leaf.toml"
    ran = headwater("config", "init", "-c", path)
    assert ran.code == 0
    assert f"headwater config check -c {path}" in ran.err.replace("\n", "")
    assert parse(path.read_text(), {}) == SiteConfig(name="leaf-1", tier="leaf")
    path.write_text("mine")
    ran = headwater("config", "init", "-c", path)
    assert ran.code == 1
    assert "is there already: --force overwrites it" in ran.err
    assert path.read_text() == "mine"
    assert headwater("config", "init", "-c", path, "--force", "--name", "gate-3", "--region", "r:9092").code == 0
    config = parse(path.read_text(), {})
    assert config.name == "gate-3"
    assert config.link is not None
    assert config.link.region.bootstrap_servers == "r:9092"


def test_init_of_a_region_and_to_standard_output(headwater: Run) -> None:
    ran = headwater("config", "init", "--tier", "region", "--site", "gate-3", "--site", "gate-4", "--kafka", "k:1", "-c", "-")
    assert ran.code == 0
    config = parse(ran.out, {})
    assert (config.tier, config.region.sites, config.kafka.bootstrap_servers) == ("region", ("gate-3", "gate-4"), "k:1")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--region", "nowhere"), 1, "$.link.region.bootstrap_servers is 'nowhere': expected host:port"),
        (("--name", "Gate 3"), 1, "$.name is 'Gate 3'"),
        (("--site", "a"), 2, "--site is for a region"),
        (("--tier", "region", "--region", "a:1"), 2, "--region is for a leaf"),
        (("-c", "/no/such/folder/x.toml"), 1, "/no/such/folder/x.toml cannot be written: No such file or directory"),
    ],
)
def test_init_refuses_what_would_not_work(
    headwater: Run, arguments: tuple[str, ...], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = headwater("config", "init", *arguments)
    assert ran.code == code
    assert told in ran.err
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_check_says_ok_or_every_fault(headwater: Run, tmp_path: Path) -> None:
    path = tmp_path / "leaf.toml"
    path.write_text(LEAF + "[[rules]]\nname = 'gate'\n[policy]\nmode = 'off'")
    ran = headwater("config", "check", "-c", path)
    assert (ran.code, ran.out.replace("\n", "")) == (0, f"OK {path}: leaf leaf-1, 1 rule, Kafka at 127.0.0.1:9092")
    path.write_text(LEAF + "[topics]\npartitions = 0\nprefixx = 'a'")
    ran = headwater("config", "check", "-c", path)
    assert ran.code == 1
    assert f"{path} has 2 faults:" in ran.err
    assert "$.topics.prefixx is unknown: did you mean prefix?" in ran.err
    ran = headwater("config", "check", "-c", path, "--json")
    answer = msgspec.json.decode(ran.out)
    assert (ran.code, answer["ok"]) == (1, False)
    assert "$.topics.partitions is 0" in answer["faults"][0]


def test_check_looks_at_files_and_client_settings_of_this_machine(headwater: Run, tmp_path: Path) -> None:
    path = tmp_path / "leaf.toml"
    path.write_text(
        LEAF + '[detector]\nmodel = "none.onnx"\nlabels = "none.txt"\n[kafka.properties]\n"sasl.mechanism" = "PLAIN"\n"no.such" = "1"'
    )
    ran = headwater("config", "check", "-c", path)
    assert ran.code == 1
    for told in (
        "$.detector.model is 'none.onnx'",
        "$.detector.labels is 'none.txt'",
        "$.kafka.properties: No such configuration property",
    ):
        assert told in ran.err
    assert "$.rules is empty: no alert will be raised" in ran.out


def test_show_tells_what_is_in_force_and_hides_secrets(headwater: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "geheim")
    path = tmp_path / "leaf.toml"
    path.write_text(
        LEAF
        + '[topics]\npartitions = 7\n[[rules]]\nname = "gate"\nzone = [[0, 0], [1, 0], [1, 1]]\n'
        + '[[redact]]\nlabel = "person"\n[[shared_zones]]\nname = "yard"\nsources = ["a", "b"]\n'
        + '[kafka.properties]\n"sasl.password" = "${PASSWORD}"\n"sasl.username" = "me"\n'
        + '[link.region.properties]\n"ssl.key.password" = "geheim"'
    )
    ran = headwater("config", "show", "-c", path)
    assert ran.code == 0
    assert "geheim" not in ran.out + ran.err
    shown = parse(ran.out, {})
    assert shown.topics == parse(path.read_text(), {"PASSWORD": ""}).topics
    for name in ("rules", "redact", "shared_zones"):
        assert getattr(shown, name) == getattr(parse(path.read_text(), {"PASSWORD": ""}), name)
    assert shown.kafka.properties == {"sasl.password": "<hidden>", "sasl.username": "me"}
    ran = headwater("config", "show", "-c", path, "--json")
    answer = msgspec.json.decode(ran.out)
    assert "geheim" not in ran.out
    assert (answer["topics"]["partitions"], answer["policy"]["burst_s"]) == (7, 5.0)
    assert answer["link"]["region"]["properties"] == {"ssl.key.password": "<hidden>"}


def test_no_file_says_how_to_begin(headwater: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("check", "show"):
        ran = headwater("config", verb)
        assert ran.code == 1
        assert "there is no file headwater.toml: `headwater config init` writes one" in ran.err
