"""The documented file: it parses to the defaults, and taking the comments away changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from schemas.config import Link, SecondRegion, SiteConfig, fields, parse
from schemas.config_file import document

LEAF = {"name": "gate-3", "tier": "leaf"}
REGION = {"name": "north", "tier": "region", "region": {"sites": ["gate-3", "gate-4"]}}


def uncommented(text: str) -> str:
    """Every default taken out of its comment; sentences stay, and the examples of what may stand many times go."""
    text = re.sub(r"^# \[\[.*?\n\n", "\n", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^# (\[[a-z.]+\]|[a-z_]+ = .*)$", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("values", [LEAF, REGION])
def test_the_file_parses_to_the_defaults(values: dict[str, Any]) -> None:
    plain = {name: value for name, value in values.items() if name != "region"}
    expected = parse("\n".join(f'{name} = "{value}"' for name, value in plain.items()) + _sites(values), {})
    assert parse(document(values), {}) == expected


def _sites(values: dict[str, Any]) -> str:
    return f"\n[region]\nsites = {values['region']['sites']}" if "region" in values else ""


@pytest.mark.parametrize("values", [LEAF, REGION])
def test_every_default_in_a_comment_is_the_default(values: dict[str, Any]) -> None:
    text = uncommented(document(values))
    config = parse(text, {})
    link = Link(second=SecondRegion()) if values is LEAF else None
    expected = parse(document(values), {})
    assert {name: getattr(config, name) for name in SiteConfig.__struct_fields__} == {
        **{name: getattr(expected, name) for name in SiteConfig.__struct_fields__},
        "link": link,
    }
    assert text.count("\n# [") == 0


def test_the_example_of_a_rule_is_a_rule() -> None:
    example = re.findall(
        r"^# (\[\[rules\]\]|name = .*|label = .*|min_score = .*|zone = .*)$", document(LEAF).partition("[[shared_zones]]")[0], re.M
    )
    start = example.index("[[rules]]")
    (rule,) = parse('name = "a"\ntier = "leaf"\n' + "\n".join(example[start:]), {}).rules
    assert rule.zone


def test_the_examples_of_rules_in_the_readme_are_rules() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(\[\[rules\]\].*?)^```$", readme, re.M | re.S)
    rules = parse('name = "a"\ntier = "leaf"\n' + example, {}).rules
    assert [rule.needs_past for rule in rules] == [False, True, True, True]


def test_the_example_of_a_shared_zone_is_one() -> None:
    example = "\n".join(re.findall(r"^# (\[\[shared_zones\]\]|name = \"gate\"|sources = \[.*)$", document(LEAF), re.M))
    (zone,) = parse('name = "a"\ntier = "leaf"\n' + example, {}).shared_zones
    assert len(zone.sources) == 2


def test_the_example_of_a_fallback_is_a_fallback() -> None:
    example = "\n".join(re.findall(r"^# (\[\[detector\.fallbacks\]\]|sizes = \[160\])$", document(LEAF), re.M))
    (fallback,) = parse('name = "a"\ntier = "leaf"\n' + example, {}).detector.fallbacks
    assert fallback.sizes == (160,)


def test_every_field_of_a_leaf_is_there_with_its_sentence() -> None:
    text = " ".join(line.removeprefix("#").strip() for line in document(LEAF).splitlines())
    for path, _, sentence, _ in fields():
        if path.startswith("region."):
            continue
        assert sentence, f"{path} has no sentence"
        assert sentence in text, path
        assert re.search(rf"\b{path.rpartition('.')[2]}( =|:)", text), path


def test_what_is_given_stands_out_of_the_comments() -> None:
    text = document({**LEAF, "kafka": {"properties": {"sasl.username": "a"}}, "link": {"region": {"bootstrap_servers": "r:1"}}})
    assert '\nproperties = { "sasl.username" = "a" }\n' in text
    assert "\n[link.region]\n" in text
    assert '\nbootstrap_servers = "r:1"\n' in text
    config = parse(text, {})
    assert config.link is not None
    assert config.link.region.bootstrap_servers == "r:1"
