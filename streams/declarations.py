"""The one declaration of every topic: on which tier, with which key and value, how long it is kept, who writes it and who reads it.
`streams/topology.py` makes a site's topology of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from schemas import envelope
from schemas.config import SiteConfig
from schemas.messages import Tier
from streams.topic import Role, Topic

_P, _L, _R, _J, _K, _X, _O = Role.PRODUCER, Role.LEAF, Role.REGION, Role.RESOLVER, Role.LINK, Role.READER, Role.OPERATOR
_A = Role.ACCOUNTANT


def leaf_topics(config: SiteConfig) -> Iterable[Topic]:
    make = _Maker(config, Tier.LEAF)
    short, outbox = _frames(config), _outbox(config)
    largest = config.ingress.max_frame_bytes + (64 << 10)
    yield make(
        "frames",
        "source",
        "JPEG bytes",
        [_P],
        [_L, _X],
        "encoded images from cameras and clients",
        content_type=envelope.JPEG,
        max_message_bytes=max(largest, 16 << 20),
        **short,
    )
    yield make("verdicts", "record id", "Verdict", [_L, _J], [_J, _K, _X], "the leaf's answer to each frame; passed deadlines", **outbox)
    yield make("region.verdicts", "record id", "Verdict", [_K], [_L, _J, _X], "the region's answers, brought by the link", **outbox)
    yield make(
        "lessons",
        "source",
        "packed lesson",
        [_L],
        [_L],
        "what the leaf has learned of each source from the region's answers",
        content_type="application/zlib",
        cleanup="compact",
    )
    yield make(
        "drift",
        "alarm id",
        "Drift",
        [_L],
        [_X],
        "streams that are no longer what they were: a camera that is blurred, dark, moved, frozen or silent; answers that have shifted",
        cleanup="compact,delete",
        **_alerts(config),
    )
    yield make(
        "accuracy",
        "source/model",
        "Accuracy",
        [_L],
        [_X],
        "how accurate the answers to each source are, measured on the audit sample",
        cleanup="compact",
    )
    yield make(
        "labels",
        "record id",
        "Label",
        [_O, _P],
        [_L, _X],
        "what frames truly show, as people know or whatever knows better than the models",
        cleanup="compact,delete",
        **_alerts(config),
    )
    yield make(
        "results",
        "record id",
        "Result",
        [_J],
        [_J, _A, _X],
        "what to believe of each frame: the join of its verdicts",
        cleanup="compact,delete",
        **_results(config),
    )
    yield make(
        "alerts", "alert id", "Alert", [_L, _J, _O], [_L, _J, _K, _X], "rules that fired, and what became of each", **_alerts(config)
    )
    yield from _of_resolver(make, config)
    yield make(
        "alerts.evidence",
        "alert id",
        "JPEG bytes",
        [_L],
        [_K, _X] if config.link is not None and config.link.pictures else [_X],
        "the picture of each alert",
        content_type=envelope.JPEG,
        retention_s=_alerts(config)["retention_s"],  # a picture is kept as long as its alert
        retention_bytes=1 << 30,
        max_message_bytes=largest,
    )
    yield make(
        "escalations",
        "source",
        "evidence; Escalation in a header",
        [_L],
        [_K, _X],
        "what the region is asked to judge",
        content_type=envelope.JPEG,
        max_message_bytes=4 << 20,
        **outbox,
    )
    yield make(
        "escalations.alerts",
        "source",
        "evidence; Escalation in a header",
        [_L],
        [_K, _X],
        "the frames of alerts, which the region is asked to judge first",
        content_type=envelope.JPEG,
        max_message_bytes=4 << 20,
        **outbox,
    )
    yield make(
        "drops", "source/epoch/site/stage", "Drop", [_P, _L, _J, _K], [_K, _A, _X], "sequences that were not processed, and why", **outbox
    )
    yield make(
        "epochs", "source/epoch/site/stage", "EpochMark", [_P], [_K, _A, _X], "runs of sources: start, acknowledged mark, end", **outbox
    )
    yield make(
        "accounts",
        "source/epoch/site/stage",
        "AccountSet",
        [_A],
        [_A, _K, _X],
        "what became of every sequence, as interval sets that outlive the records",
        cleanup="compact",
    )
    yield make("control", "site", "Control", [_K], [_L, _X], "the region's capacity and wishes", cleanup="compact")
    yield make(
        "positions",
        "cluster/topic/partition",
        "Position",
        [_K],
        [_K, _X],
        "how far the link has carried each topic: down, and a copy of what its region holds",
        cleanup="compact",
        by_source=False,
    )
    yield make(
        "link.state",
        "link",
        "LinkState",
        [_K],
        [_L, _K, _X],
        "whether the region answers, and who runs the link",
        cleanup="compact",
        by_source=False,
    )
    yield make(
        "link.orders",
        "link",
        "LinkOrder",
        [_O],
        [_K, _X],
        "what people want of the link: pause, go on",
        cleanup="compact",
        by_source=False,
    )
    yield _decisions(make, config)
    for topic, reader in (
        ("frames", _L),
        ("verdicts", _J),
        ("region.verdicts", _J),
        ("alerts", _J),
        ("incidents.alerts", _J),
        ("control", _L),
        ("link.state", _L),
    ):
        yield make(
            f"{topic}.dlq",
            "as origin",
            "the origin's bytes",
            [reader],
            [_A, _X] if topic in {"frames", "verdicts"} else [_X],
            f"records of {topic} that failed for good",
            content_type="as origin",
            max_message_bytes=_letter(max(largest, 16 << 20) if topic == "frames" else 1 << 20),
            by_source=False,
            **outbox,
        )


def region_topics(config: SiteConfig) -> Iterable[Topic]:
    make = _Maker(config, Tier.REGION)
    outbox = _outbox(config)
    yield _decisions(make, config)
    for site in config.region.sites:
        yield make("up.alerts", "alert id", "Alert", [_K], [_J, _X], f"alerts of {site}", site=site, **outbox)
        yield make(
            "up.alerts.evidence",
            "alert id",
            "JPEG bytes",
            [_K],
            [_X],
            f"pictures of the alerts of {site}",
            content_type=envelope.JPEG,
            retention_s=_alerts(config)["retention_s"],
            retention_bytes=1 << 30,
            max_message_bytes=config.ingress.max_frame_bytes + (64 << 10),
            site=site,
        )
        yield make("up.verdicts", "record id", "Verdict", [_K], [_J, _X], f"verdicts of {site}", site=site, **outbox)
        for base, what in (("up.escalations", f"what {site} asks"), ("up.escalations.alerts", f"what {site} asks about its alerts")):
            yield make(
                base,
                "source",
                "evidence; Escalation in a header",
                [_K],
                [_R, _X],
                what,
                content_type=envelope.JPEG,
                max_message_bytes=4 << 20,
                site=site,
                **outbox,
            )
            yield make(
                f"{base}.dlq",
                "as origin",
                "the origin's bytes",
                [_R],
                [_X],
                f"records of {base} of {site} that failed for good",
                content_type="as origin",
                max_message_bytes=_letter(4 << 20),
                by_source=False,
                site=site,
                **outbox,
            )
        yield make("up.drops", "source/epoch/site/stage", "Drop", [_K], [_A, _X], f"drops of {site}", site=site, **outbox)
        yield make(
            "up.epochs", "source/epoch/site/stage", "EpochMark", [_K], [_A, _X], f"runs of the sources of {site}", site=site, **outbox
        )
        yield make(
            "up.accounts",
            "source/epoch/site/stage",
            "AccountSet",
            [_K],
            [_A, _X],
            f"what became of every sequence at {site}",
            cleanup="compact",
            site=site,
        )
        yield make(
            "up.positions",
            "cluster/topic/partition",
            "Position",
            [_K],
            [_K, _X],
            f"how far the link of {site} has come",
            cleanup="compact",
            by_source=False,
            site=site,
        )
        yield make(
            "up.holder",
            "link",
            "LinkHold",
            [_K],
            [_K, _X],
            f"who runs the link of {site}",
            cleanup="compact",
            by_source=False,
            site=site,
        )
        yield make("down.verdicts", "record id", "Verdict", [_R], [_J, _K, _X], f"answers for {site}", site=site, **outbox)
        yield make("down.control", "site", "Control", [_R], [_K, _X], f"capacity announced to {site}", cleanup="compact", site=site)
        for base in ("up.verdicts", "up.alerts", "down.verdicts"):
            yield make(
                f"{base}.dlq",
                "as origin",
                "the origin's bytes",
                [_J],
                [_A, _X] if base == "up.verdicts" else [_X],
                f"records of {base} of {site} that failed for good",
                content_type="as origin",
                max_message_bytes=_letter(1 << 20),
                by_source=False,
                site=site,
                **outbox,
            )
    yield make(
        "results",
        "record id",
        "Result",
        [_J],
        [_J, _A, _X],
        "what to believe of each frame, for the whole region",
        cleanup="compact,delete",
        **_results(config),
    )
    yield make("alerts", "alert id", "Alert", [_R, _J], [_J, _X], "alerts of the whole region, and what became of each", **_alerts(config))
    yield from _of_resolver(make, config)
    for base in ("alerts", "incidents.alerts"):
        yield make(
            f"{base}.dlq",
            "as origin",
            "the origin's bytes",
            [_J],
            [_X],
            f"records of {base} that failed for good",
            content_type="as origin",
            max_message_bytes=_letter(1 << 20),
            by_source=False,
            **outbox,
        )


def _of_resolver(make: _Maker, config: SiteConfig) -> Iterable[Topic]:
    """What only a resolver writes and reads, on either tier, and the incidents that people read."""
    yield make(
        "incidents.alerts",
        "alert id",
        "Alert",
        [_J],
        [_J, _X],
        "the alerts again, gathered by place for those who join incidents",
        cleanup="compact,delete",
        **_alerts(config),
    )
    yield make(
        "incidents",
        "incident id",
        "Incident",
        [_J],
        [_J, _X],
        "the alerts of one event, joined",
        cleanup="compact,delete",
        **_alerts(config),
    )
    yield make(
        "resolver.memory",
        "part of a snapshot",
        "Snapshot; its parts",
        [_J],
        [_J],
        "snapshots of what the resolver remembers",
        cleanup="compact,delete",
        retention_s=2 * config.topics.outbox_retention_s,
        retention_bytes=64 << 20,
    )
    yield make(
        "accounts",
        "source/epoch/site/stage",
        "AccountSet",
        [_A],
        [_A, _X],
        "what became of every sequence, as interval sets that outlive the records",
        cleanup="compact",
    )


def with_operators(topics: Iterable[Topic]) -> Iterable[Topic]:
    """What people may write with the command besides: a topic that has dead letters takes them back when they are replayed, and `drops`
    explains those that are discarded."""
    known = list(topics)
    replayed = {topic.name.removesuffix(".dlq") for topic in known if topic.name.endswith(".dlq")}
    for topic in known:
        if topic.name in replayed or topic.base == "drops":
            yield msgspec.structs.replace(topic, writers=topic.writers | {_O})
        else:
            yield topic


def _decisions(make: _Maker, config: SiteConfig) -> Topic:
    """Kept twice as long as the dead letters that they are about."""
    return make(
        "dlq.decisions",
        "dead letter's place",
        "Decision",
        [_O],
        [_O, _X],
        "which dead letters were replayed or discarded, and by whom",
        cleanup="compact,delete",
        by_source=False,
        retention_s=2 * config.topics.outbox_retention_s,
        retention_bytes=config.topics.outbox_retention_bytes,
    )


def _letter(origin_bytes: int) -> int:
    """The largest dead letter: its record, and the headers that say what was wrong with it."""
    return origin_bytes + (64 << 10)


def _frames(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": config.topics.frames_retention_s, "retention_bytes": config.topics.frames_retention_bytes}


def _outbox(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": config.topics.outbox_retention_s, "retention_bytes": config.topics.outbox_retention_bytes}


def _alerts(config: SiteConfig) -> dict[str, Any]:
    return {"retention_s": 2 * config.topics.outbox_retention_s, "retention_bytes": 2 * config.topics.outbox_retention_bytes}


def _results(config: SiteConfig) -> dict[str, Any]:
    """Results outlive every input of the resolver with its dead letters, and what a link may bring again from the other side's outbox, so
    that its memory can be read back for as long as an input can be replayed; and they have room for its two inputs of verdicts (of each
    site)."""
    sites = max(1, len(config.region.sites)) if config.tier_name is Tier.REGION else 1
    return {"retention_s": 4 * config.topics.outbox_retention_s, "retention_bytes": 2 * sites * config.topics.outbox_retention_bytes}


class _Maker:
    def __init__(self, config: SiteConfig, tier: Tier) -> None:
        self.config, self.tier = config, tier

    def __call__(
        self,
        base: str,
        key: str,
        value: str,
        writers: list[Role],
        readers: list[Role],
        description: str,
        *,
        site: str | None = None,
        by_source: bool = True,
        content_type: str = envelope.JSON,
        **settings: Any,
    ) -> Topic:
        direction, _, rest = base.partition(".")
        name = f"{direction}.{site}.{rest}" if site else base
        return Topic(
            base=base,
            name=self.config.topics.prefix + name,
            tier=self.tier,
            key=key,
            value=value,
            content_type=content_type,
            description=description,
            writers=frozenset(writers),
            readers=frozenset(readers),
            site=site,
            by_source=by_source,
            partitions=self.config.topics.partitions if by_source else 1,
            **settings,
        )
