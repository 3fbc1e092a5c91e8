"""Names: every id can be computed again, reads back as it was written, and never names two things."""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas.identity import (
    FOREIGN,
    MAX_SEQUENCE,
    InvalidIdentity,
    RecordId,
    Source,
    alert_id,
    check_source,
    content_digest,
    escalation_id,
    foreign_id,
    key_of_source,
    new_epoch,
    source_of_key,
)

LONG_KEY = bytes(range(256)) * 4


@given(st.from_type(RecordId))
def test_a_record_id_reads_back_as_it_was(name: RecordId) -> None:
    assert RecordId.parse(str(name)) == name
    assert str(name) == f"{name.stream}/{name.sequence}"
    assert name.foreign == (name.source == FOREIGN)


near_ids = st.from_regex(r"[a-z.]{0,3}(/[0-9a-z.-]{0,4}){0,6}")


@given(st.text() | near_ids | near_ids.map("kafka/".__add__) | st.from_type(RecordId).map(str).map(str.upper))
@example("a/b/" + "9" * 5000)
@example("a/b/٣")
@example("a/b/1\n")
@example("kafka/c/t/" + "9" * 5000 + "/0")
def test_any_text_is_the_one_way_to_write_an_id_or_refused(text: str) -> None:
    try:
        name = RecordId.parse(text)
    except InvalidIdentity as error:
        assert len(str(error)) < 400  # noqa: PT017
        return
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "/",
            "//",
            "a",
            "a/b",
            "a//0",
            "/e/0",
            "a/e/",
            "a/e/-1",
            "a/e/+1",
            "a/e/00",
            "a/e/01",
            "a/e/1.0",
            "a/e/0x1",
            "a/e/ 1",
            "a/e/1 ",
        ),
        *(
            f"a/e/{MAX_SEQUENCE + 1}",
            "a/e/f/0",
            "a b/e/0",
            "ä/e/0",
            "./e/0",
            "../e/0",
            "a/e e/0",
            "a" * 65 + "/e/0",
            "a/" + "e" * 65 + "/0",
        ),
        *("kafka/0", "kafka/e/0", "kafka/c/t/0", "kafka/c/t/p/0", "kafka/c/t/01/0", "kafka/c/t/0/x/0", "kafka//t/0/0", "kafka/c/t/0/-1"),
        *("a%20/e/0", "a\0/e/0", "a/e/1\n", "a\n/e/1"),
    ],
)
def test_what_is_no_record_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdentity, match=r"expected|must be|does not match"):
        RecordId.parse(text)


def test_the_largest_id_is_read() -> None:
    assert RecordId.parse(f"a/e/{MAX_SEQUENCE}").sequence == MAX_SEQUENCE
    assert RecordId.parse("kafka/4L6g3nShT-eMCtK--X86sw/pFAcF4-wRAaImhYFi3Csog/0/17") == foreign_id(
        "4L6g3nShT-eMCtK--X86sw", "pFAcF4-wRAaImhYFi3Csog", 0, 17
    )


place = st.tuples(st.sampled_from(["c", "C", "c-1", "c.1"]), st.sampled_from(["t", "u", "t-1"]), st.integers(0, 120), st.integers(0, 10**6))


@given(place, place)
def test_a_place_in_kafka_has_one_id_and_different_places_have_different_ones(
    one: tuple[str, str, int, int], two: tuple[str, str, int, int]
) -> None:
    assert (foreign_id(*one) == foreign_id(*two)) == (one == two)
    assert (str(foreign_id(*one)) == str(foreign_id(*two))) == (one == two)
    assert RecordId.parse(str(foreign_id(*one))) == foreign_id(*one)


@pytest.mark.parametrize("name", ["cam-1", "A.b_c-9", "x" * 64, "...", "KAFKA"])
def test_a_source_may_be_called(name: str) -> None:
    assert check_source(name) == name


@pytest.mark.parametrize("name", ["", "kafka", ".", "..", "x" * 65, "a b", "a/b", "a%20", "ä", "a\n", "a\0"])
def test_a_source_may_not_be_called(name: str) -> None:
    with pytest.raises(InvalidIdentity, match="expected 1 to 64 letters"):
        check_source(name)


# ---- foreign keys


source_pattern = next(meta.pattern for meta in get_args(Source)[1:])
keys = (
    st.binary()
    | st.text().map(str.encode)
    | st.binary(max_size=400)
    | st.sampled_from([b"kafka", b".", b"..", b"~", b"%", b"frames.0", b"frames.12"])
)


@given(keys)
@example(b"kafka")
@example(LONG_KEY)
@example(b" " * 100)
def test_any_key_names_a_source_that_can_travel(key: bytes) -> None:
    name = source_of_key(key, "frames", 3)
    assert re.match(source_pattern, name)
    assert name not in {FOREIGN, ".", ".."}
    assert source_of_key(key, "frames", 3) == name
    if key and not name.startswith("sha256-"):
        assert key_of_source(name) == key.decode(errors="replace")


@given(keys, keys)
@example(b"kafka", b"%6Bafka")
@example(b"kafka", b"%6bafka")
@example(b"gate 3", b"gate%203")
@example(LONG_KEY, ("sha256-" + hashlib.sha256(LONG_KEY).hexdigest()).encode())
@example(b"frames.0", b"")
@example(b"frames.0", b"%66rames.0")
@example(b"\xff", b"%FF")
@example(b"a~", b"a%7E")
def test_different_keys_name_different_sources(one: bytes, two: bytes) -> None:
    assume(one != two)
    assert source_of_key(one, "frames", 0) != source_of_key(two, "frames", 0)


@given(keys.filter(bool), st.integers(0, 20), st.integers(0, 20))
@example(b"frames.12", 0, 12)
def test_no_key_names_the_source_of_records_without_one(key: bytes, here: int, there: int) -> None:
    assert source_of_key(key, "frames", here) != source_of_key(None, "frames", there)


def test_what_people_see() -> None:
    assert source_of_key(b"cam-1", "frames", 0) == "cam-1"
    assert source_of_key(b"gate 3", "frames", 0) == "gate%203"
    assert source_of_key("Tür".encode(), "frames", 0) == "T%C3%BCr"
    assert source_of_key(None, "frames", 2) == source_of_key(b"", "frames", 2) == "frames.2"
    assert source_of_key(None, "t" * 249, 2).startswith("sha256-")


# ---- ids that are digests


parts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(parts, parts, parts, parts)
def test_alerts_of_different_rules_or_records_are_different(rule: str, record: str, rule2: str, record2: str) -> None:
    try:
        one, two = alert_id(rule, record), alert_id(rule2, record2)
    except InvalidIdentity:
        assert "\n" in rule + record + rule2 + record2
        return
    assert (one == two) == ((rule, record) == (rule2, record2))
    assert alert_id(rule, record) == one


@given(st.lists(parts, max_size=3), parts, st.lists(parts, max_size=3), parts)
@example(["a", "b"], "c", ["a"], "b\nc")
@example(["a\nb"], "c", ["a", "b"], "c")
def test_escalations_of_different_records_or_evidence_are_different(ids: list[str], digest: str, ids2: list[str], digest2: str) -> None:
    try:
        one, two = escalation_id(tuple(ids), digest), escalation_id(tuple(ids2), digest2)
    except InvalidIdentity:
        assert "\n" in "".join([*ids, digest, *ids2, digest2])
        return
    assert (one == two) == ((ids, digest) == (ids2, digest2))


def test_the_ids_are_what_any_other_program_computes() -> None:
    digest = hashlib.sha256(b"door\ncam-1/e/7").hexdigest()
    assert alert_id("door", "cam-1/e/7") == f"alert-{digest[:32]}"
    digest = hashlib.sha256(b"cam-1/e/7\ncam-1/e/8\n" + b"f" * 64).hexdigest()
    assert escalation_id(("cam-1/e/7", "cam-1/e/8"), "f" * 64) == f"esc-{digest[:32]}"
    assert content_digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_epoch_is_a_new_uuid_of_version_7() -> None:
    epochs = {new_epoch() for _ in range(1000)}
    assert len(epochs) == 1000
    assert {uuid.UUID(epoch).version for epoch in epochs} == {7}
    assert all(RecordId.parse(f"cam-1/{epoch}/0").epoch == epoch for epoch in epochs)
