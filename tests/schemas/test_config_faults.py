"""What a person is told about a wrong file: the file, the path, the value, what was expected; and never anything but `InvalidConfig`."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import MAX_FILE_BYTES, InvalidConfig, SiteConfig, parse

LEAF = 'name = "leaf-1"\ntier = "leaf"\n'


def fault(text: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse(text, environment or {}, where="leaf.toml")
    return str(caught.value)


RULE = "[[rules]]\nname = 'a'\n"


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ('tier = "leaf"', "$.name", "is missing: expected 1 to 64 of lower-case letters"),
        ('name = "Gate 3"\ntier = "leaf"', "$.name", "is 'Gate 3': expected 1 to 64 of lower-case letters, digits and '-'"),
        ('name = "gate\\n"\ntier = "leaf"', "$.name", "is 'gate\\n'"),
        ('name = "a"\ntier = "leef"', "$.tier", "is 'leef': expected 'leaf' or 'region' (did you mean 'leaf'?)"),
        (LEAF + "[topics]\npartitions = 'four'", "$.topics.partitions", "is 'four': expected a whole number from 1 to 256"),
        (LEAF + "[topics]\npartitions = 0", "$.topics.partitions", "is 0: expected a whole number from 1 to 256"),
        (LEAF + "[topics]\npartitions = true", "$.topics.partitions", "is True: expected a whole number"),
        (LEAF + "[policy]\nttl_s = inf", "$.policy.ttl_s", "is inf: expected a"),
        (LEAF + "[policy]\nburst_s = nan", "$.policy.burst_s", "is nan: expected a"),
        (LEAF + "[policy]\nvalue = 'uncertain'", "$.policy.value", "(did you mean 'uncertainty'?)"),
        (LEAF + "[kafka]\nbootstrap_servers = 'nowhere'", "$.kafka.bootstrap_servers", "is 'nowhere': expected host:port"),
        (LEAF + "[kafka]\nbootstrap_servers = 'a:99999'", "$.kafka.bootstrap_servers", "is 'a:99999': expected a port from 1 to 65535"),
        (LEAF + "[link.region]\nbootstrap_servers = 'a:0'", "$.link.region.bootstrap_servers", "is 'a:0': expected a port"),
        (LEAF + "[engine]\nprefer = []", "$.engine.prefer", "has 0 items: expected an array, not empty"),
        (LEAF + "[engine]\nprefer = ['gpu', 'cpuu']", "$.engine.prefer[1]", "(did you mean 'cpu'?)"),
        (LEAF + "[[rules]]\nname = 'a'\n[[rules]]\nlabel = 'car'", "$.rules[1].name", "is missing"),
        (LEAF + "[[rules]]\nname = 'a'\nzone = [[0, 0], [1, 1]]", "$.rules[0].zone", "2 points: expected 3 to 64"),
        (LEAF + "[[rules]]\nname = 'a'\nzone = [[0, 0], [1, 1], [2, 0]]", "$.rules[0].zone", "from 0 to 1"),
        (LEAF + "[[rules]]\nname = 'a'\n[[rules]]\nname = 'a'", "$.rules[1].name", "is 'a' again"),
        (LEAF + RULE + "on = 'enter'", "$.rules[0].on", "is 'enter': expected 'presence' or 'entry' or 'exit' (did you mean 'entry'?)"),
        (LEAF + RULE + "on = 'entry'", "$.rules[0].zone", "is empty: expected a polygon, since $.rules[0].on is 'entry'"),
        (LEAF + RULE + "on = 'exit'\nzone = []", "$.rules[0].zone", "set zone, or on = 'presence'"),
        (LEAF + RULE + "heading = [0, 0.0]", "$.rules[0].heading", "is [0.0, 0.0]: expected [dx, dy], not both 0, such as [1, 0]"),
        (LEAF + RULE + "heading = [1]", "$.rules[0].heading", "is [1.0]: expected [dx, dy]"),
        (LEAF + RULE + "heading = [1, 0, 0]", "$.rules[0].heading", "has 3 items: expected [dx, dy]"),
        (LEAF + RULE + "heading = [1, nan]", "$.rules[0].heading[1]", "is nan: expected a"),
        (LEAF + RULE + "heading = 90", "$.rules[0].heading", "is 90: expected [dx, dy] or []"),
        (LEAF + RULE + "heading = [1, 0]\nheading_tolerance_deg = 0", "$.rules[0].heading_tolerance_deg", "is 0: expected a number"),
        (LEAF + RULE + "heading = [1, 0]\nheading_tolerance_deg = 181", "$.rules[0].heading_tolerance_deg", "is 181: expected a number"),
        (
            LEAF + RULE + "heading_tolerance_deg = 30",
            "$.rules[0].heading_tolerance_deg",
            "is 30 without a heading: expected $.rules[0].heading",
        ),
        (LEAF + "[metrics]\nports = {agent = 'x'}", "$.metrics.ports.agent", "is 'x': expected a whole number from 0 to 65535"),
        (LEAF + '[detector]\nmodel = "a\\u0000b"', "$.detector.model", "expected text without NUL"),
        (LEAF + "kafka = 3", "$.kafka", "is 3: expected a table"),
        (LEAF + "rules = {a = 1}", "$.rules", "is a table: expected an array"),
        (LEAF + "[link]\nregion_name = 'leaf-1'", "$.link.region_name", "this site's own name"),
        ('name = "r"\ntier = "region"', "$.region.sites", "is empty: expected the names of the leaf sites"),
        ('name = "r"\ntier = "region"\n[region]\nsites = ["a", "a"]', "$.region.sites", "expected each site once"),
        ('name = "r"\ntier = "region"\n[region]\nsites = ["a"]\n[link]', "$.link", "the leaf dials"),
    ],
)
def test_each_fault_names_file_path_and_expectation(text: str, path: str, told: str) -> None:
    message = fault(text)
    assert message.startswith("leaf.toml"), message
    assert re.search(rf"{re.escape(path)}(?![\w.\[])", message), message
    assert told in message


@pytest.mark.parametrize(
    "fields",
    [
        "on = 'entry'\nzone = [[0, 0], [1, 0], [1, 1]]\nmin_duration_s = 2",
        "on = 'exit'\nzone = [[0, 0], [1, 0], [1, 1]]\nheading = [0, -1]\nheading_tolerance_deg = 90",
        "heading = [-1, 0]",
        "heading = []",
    ],
)
def test_ways_and_crossings_may_be_combined(fields: str) -> None:
    (rule,) = parse(LEAF + RULE + fields, {}).rules
    assert rule.needs_past is (fields != "heading = []")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LEAF + "[kafka]\nbootstrap_server = 'a:1'", "$.kafka.bootstrap_server is unknown: did you mean bootstrap_servers?"),
        (LEAF + "[topic]\npartitions = 1", "$.topic is unknown: did you mean topics?"),
        (LEAF + "[[rules]]\nname = 'a'\nlabl = 'car'", "$.rules[0].labl is unknown: did you mean label?"),
        (LEAF + "[link.region]\npropertes = {}", "$.link.region.propertes is unknown: did you mean properties?"),
    ],
)
def test_unknown_fields_get_the_nearest_name_of_their_own_table(text: str, told: str) -> None:
    assert told in fault(text)


def test_a_name_of_another_table_is_not_suggested() -> None:
    assert fault(LEAF + "[ingress]\nbootstrap_server = 'a:1'") == (
        "leaf.toml: $.ingress.bootstrap_server is unknown: known here are max_age_ms, max_frame_bytes"
    )


def test_all_faults_are_told_at_once() -> None:
    message = fault(LEAF + "[topics]\npartitions = 0\nreplication = 0\n[ingress]\nmax_age = 1")
    assert message.startswith("leaf.toml has 3 faults:\n")
    assert [line.split()[0] for line in message.splitlines()[1:]] == ["$.topics.partitions", "$.topics.replication", "$.ingress.max_age"]


def test_secrets_come_from_the_environment_and_are_never_shown() -> None:
    text = LEAF + '[kafka.properties]\n"sasl.password" = "${PASSWORD}"\n"sasl.username" = "site-${NUMBER}"'
    assert parse(text, {"PASSWORD": "geheim", "NUMBER": "7"}).kafka.properties == {"sasl.password": "geheim", "sasl.username": "site-7"}
    message = fault(text, {"NUMBER": "7"})
    assert "$.kafka.properties['sasl.password'] reads ${PASSWORD}, which is not set" in message
    assert "geheim" not in fault(text.replace("site-${NUMBER}", "x") + "\n[topics]\npartitions = 0", {"PASSWORD": "geheim"})
    assert "1234" not in fault(LEAF + '[kafka.properties]\n"sasl.password" = 1234')


@pytest.mark.parametrize(
    "text", ["name = ", "a = " + "[" * 50_000, "a = " + "9" * 5_000, "x" * (MAX_FILE_BYTES + 1), "a = 2026-13-01", "a = 1\na = 2", "\0"]
)
def test_what_is_not_toml_is_one_clear_message(text: str) -> None:
    message = fault(text)
    assert message.startswith("leaf.toml")
    assert len(message) < 300


WHOLE: dict[str, Any] = {
    "name": "leaf-1",
    "tier": "leaf",
    "data_dir": "/srv/x",
    "kafka": {"bootstrap_servers": "a:1,b:2", "properties": {"a.b": "c"}},
    "topics": {"prefix": "p.", "partitions": 2, "readers": ["connect-*"], "frames_retention_s": 60},
    "engine": {"prefer": ["cuda", "cpu"], "workers": 3},
    "detector": {"sizes": [224, 320], "min_score": 0.3},
    "rules": [{"name": "gate", "zone": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], "sources": ["cam-1"]}],
    "policy": {"mode": "off", "burst_s": 0.1},
    "link": {"region": {"bootstrap_servers": "c:3"}, "region_name": "r"},
    "metrics": {"ports": {"agent": 9100}},
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["leaf", "region", "cpu", "a:1", "${HOME}", "${NOT_SET}", "\0"])
    | st.dates()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(path for key, value in inner for path in paths(value, (*at, key)))]


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=values, extra=st.none() | st.tuples(st.text(max_size=10), values))
def test_any_change_gives_a_config_or_a_clear_message(data: st.DataObject, value: Any, extra: tuple[str, Any] | None) -> None:
    path = data.draw(st.sampled_from(paths(WHOLE)[1:]))
    tree = changed(WHOLE, path, value)
    if extra is not None:
        tree[extra[0]] = extra[1]
    try:
        text = tomli_w.dumps(tree)
        tomllib.loads(text)
    except (TypeError, ValueError, AttributeError):  # what TOML cannot say (None, lone surrogates) cannot stand in a file
        return
    message = outcome(text, {"HOME": "/root"})
    assert message is None or (message.startswith("leaf.toml") and "$." in message), message


def outcome(text: str, environment: dict[str, str]) -> str | None:
    """What is told about a file, None if it is right; any other exception fails the test."""
    try:
        assert isinstance(parse(text, environment, where="leaf.toml"), SiteConfig)
    except InvalidConfig as error:
        return str(error)
    return None


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200) | st.text(alphabet="[]{}=\"'\n.,#0aé\\", max_size=60))
def test_any_text_gives_a_config_or_a_clear_message(text: str) -> None:
    message = outcome(LEAF + text, {})
    assert message is None or message.startswith("leaf.toml")
