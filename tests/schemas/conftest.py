"""How Hypothesis makes each value that travels: registered by type, so that a test asks for `from_type(Verdict)`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from schemas import messages as m
from schemas.detections import Detection, Detections
from schemas.envelope import Envelope
from schemas.frames import Frame, Origin
from schemas.identity import FOREIGN, MAX_SEQUENCE, RecordId
from schemas.incidents import Incident, incident_of
from schemas.rules import Zone
from schemas.snapshots import LogPlace, Snapshot

# Timings are no law: a busy machine must not fail a test.
settings.register_profile("headwater", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile("headwater")

shares = st.floats(0, 1)
counts = st.integers(0, MAX_SEQUENCE)
times = st.datetimes(timezones=st.just(dt.UTC))
# RFC 3339 knows no seconds in an offset, which places had before their clocks were set by law.
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
names = st.from_regex(re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII), fullmatch=True)
sources = names.filter(lambda name: name not in {FOREIGN, ".", ".."})
sites = st.from_regex(re.compile(r"[a-z0-9-]{1,64}", re.ASCII), fullmatch=True)
digests = st.from_regex(re.compile(r"[0-9a-f]{64}", re.ASCII), fullmatch=True)


def texts(low: int, high: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=low, max_size=high)


own_ids = st.builds(RecordId, sources, names, counts)
foreign_ids = st.builds(
    lambda cluster, topic, partition, offset: RecordId(FOREIGN, f"{cluster}/{topic}/{partition}", offset), names, names, counts, counts
)
record_ids = own_ids | foreign_ids
labels = st.sampled_from(["person", "car", "Straßenbahn", "自転車"]) | texts(1, 64)


@st.composite
def detection(draw: st.DrawFn) -> Detection:
    x0, x1 = sorted((draw(shares), draw(shares)))
    y0, y1 = sorted((draw(shares), draw(shares)))
    return Detection(draw(labels), draw(shares), x0, y0, x1, y1, draw(st.none() | st.integers(0, (1 << 53) - 1)))


@st.composite
def ranges(draw: st.DrawFn) -> m.Ranges:
    ends = sorted(draw(st.sets(counts, max_size=12)))
    pairs: list[tuple[int, int]] = []
    for first, last in zip(ends[::2], ends[1::2], strict=False):
        if not pairs or first > pairs[-1][1] + 1:
            pairs.append((first, last))
    return m.Ranges(pairs)


def source_of(draw: st.DrawFn, name: RecordId) -> str:
    return draw(sources) if name.foreign else name.source


def answers(kind: type[m.Answer], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def build(draw: st.DrawFn) -> m.Answer:
        name = draw(record_ids)
        status = draw(st.sampled_from(m.Status))
        return kind(
            id=str(name),
            source=source_of(draw, name),
            captured_at=draw(times),
            status=status,
            detections=draw(st.from_type(Detections)),
            confidence=draw(shares),
            tier=draw(st.sampled_from(m.Tier)),
            site=draw(sites),
            rank=draw(st.integers(0, 99)),
            generation=draw(st.integers(0, (1 << 31) - 1)),
            model=draw(texts(1, 128)),
            model_digest=draw(digests),
            deadline_ms=draw(counts) if status is m.Status.PROVISIONAL else None,
            evidence=draw(st.none() | digests),
            note=draw(st.none() | texts(0, 2000)),
            **{name: draw(strategy) for name, strategy in more.items()},
        )

    return build()


@st.composite
def alerts(draw: st.DrawFn) -> m.Alert:
    name = draw(record_ids)
    state = draw(st.sampled_from(m.AlertState))
    return m.Alert(
        id=draw(texts(1, 128)),
        rule=draw(texts(1, 128)),
        source=source_of(draw, name),
        site=draw(sites),
        record=str(name),
        captured_at=draw(times),
        state=state,
        version=state.height,
        label=draw(labels),
        min_score=draw(shares),
        zone=draw(st.from_type(Zone)),
        seen=draw(st.from_type(Detections)),
        score=draw(shares),
        held_s=draw(st.floats(0, allow_infinity=False)),
        model_digest=draw(digests),
        deadline_ms=draw(counts),
        decided_by=draw(st.none() | st.sampled_from(m.Tier)),
        note=draw(st.none() | texts(0, 2000)),
        raised_by=draw(st.sampled_from(m.Tier)),
        order=draw(texts(0, 300)),
        late_by_s=draw(st.floats(0, allow_infinity=False)),
    )


@st.composite
def escalations(draw: st.DrawFn) -> m.Escalation:
    source = draw(sources)
    of_source = st.builds(RecordId, st.just(source), names, counts) | foreign_ids
    asked = st.builds(m.Asked, id=of_source.map(str), captured_at=times, detections=st.from_type(Detections).map(Detections.to_json))
    return m.Escalation(
        id=draw(texts(1, 128)),
        source=source,
        site=draw(sites),
        reason=draw(st.sampled_from(m.Reason)),
        records=tuple(draw(st.lists(asked, min_size=1, max_size=4))),
        evidence=draw(digests),
        content_type=draw(texts(1, 128)),
        deadline_ms=draw(counts),
        ttl_s=draw(st.floats(0, 30 * 86_400, exclude_min=True)),
        alerts=tuple(draw(st.lists(texts(1, 128), max_size=4))),
    )


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    name = draw(own_ids)
    return Frame(
        id=name,
        source=name.source,
        captured_at=draw(times),
        jpeg=b"\xff\xd8\xff" + draw(st.binary(max_size=64)),
        traceparent=draw(st.none() | traceparents),
    )


nonzero = {
    width: st.from_regex(re.compile(rf"[0-9a-f]{{{width}}}", re.ASCII), fullmatch=True).filter(lambda text: text.strip("0"))
    for width in (16, 32)
}
traceparents = st.builds(lambda trace, span, flags: f"00-{trace}-{span}-{flags:02x}", nonzero[32], nonzero[16], st.integers(0, 255))
# What CloudEvents allows in a string: no control characters, no surrogates, no noncharacters (all of which are of category Cc, Cs or Cn).
ce_texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=80)
extension_names = st.from_regex(re.compile(r"[a-z0-9]{1,20}", re.ASCII), fullmatch=True).filter(
    lambda name: (
        name not in {"specversion", "id", "source", "type", "time", "subject", "sequence", "traceparent", "datacontenttype", "data"}
    )
)

register: Callable[..., None] = st.register_type_strategy
register(Detection, detection())
register(Detections, st.lists(detection(), max_size=6).map(Detections))
register(Zone, st.just(Zone()) | st.lists(st.tuples(shares, shares), min_size=3, max_size=12).map(Zone))
register(m.Ranges, ranges())
register(RecordId, record_ids)
register(m.Verdict, answers(m.Verdict))
register(m.Result, answers(m.Result, order=texts(8, 128)))
register(m.Alert, alerts())
register(m.Escalation, escalations())
register(m.Drop, st.builds(m.Drop, source=names, epoch=names, site=sites, stage=texts(1, 128), reason=texts(1, 128), ranges=ranges()))
register(
    m.EpochMark,
    st.builds(
        m.EpochMark,
        source=sources,
        epoch=names,
        site=sites,
        state=st.sampled_from(m.EpochState),
        assigned=counts,
        acknowledged=counts,
        started_at=times,
        width=st.integers(0, 65_535),
        height=st.integers(0, 65_535),
        fps=st.floats(0, 10_000),
    ),
)
register(m.Control, st.builds(m.Control, site=sites, region=sites, inferences_per_s=st.floats(0, 1e6), input_side=st.integers(32, 8192)))
register(
    Incident,
    st.lists(alerts(), min_size=1, max_size=4).map(lambda found: incident_of(sorted(found, key=lambda a: (a.captured_at, a.id)), "gate")),
)
log_places = st.builds(
    LogPlace,
    topic=texts(1, 128),
    topic_uuid=texts(1, 128),
    next_offset=counts,
    mark_offset=st.integers(-1, MAX_SEQUENCE),
    mark=texts(0, 32),
)
register(
    Snapshot,
    st.builds(
        Snapshot,
        layout=counts,
        partition=counts,
        cluster=texts(1, 128),
        logs=st.lists(log_places, max_size=3).map(tuple),
        slot=st.sampled_from("ab"),
        parts=st.integers(1, 1000),
        digest=digests,
    ),
)
register(
    m.Position,
    st.builds(
        m.Position,
        cluster=texts(1, 128),
        topic=texts(1, 128),
        topic_uuid=texts(1, 128),
        partition=counts,
        next_offset=counts,
        leader_epoch=st.integers(-1, (1 << 31) - 1),
        generation=counts,
        writer=texts(1, 128),
    ),
)
register(Frame, frames())
register(
    Origin,
    st.builds(Origin, cluster=names, topic=names, topic_uuid=names, partition=st.integers(0, 10_000), offset=counts, appended_at=times),
)
register(
    Envelope,
    st.builds(
        Envelope,
        id=record_ids.map(str) | ce_texts,
        source=sources | ce_texts,
        type=ce_texts,
        time=st.datetimes(timezones=st.just(dt.UTC) | offsets, min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1)),
        content_type=ce_texts,
        subject=st.none() | ce_texts,
        sequence=st.none() | counts,
        traceparent=st.none() | traceparents,
        extensions=st.dictionaries(extension_names, ce_texts | st.just(""), max_size=4),
    ),
)
