"""The configuration of one site: one TOML file, typed, every field with a sentence that says what it does.

The sentences (`Meta(description=...)`) are what `headwater config init` writes, so that the file explains itself; `Meta(title=...)` says
what a field expects where its pattern would not be understood.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, field

from schemas.config_cascade import MAX_BYTES
from schemas.config_cascade import Audit as Audit
from schemas.config_cascade import Evidence as Evidence
from schemas.config_cascade import Policy as Policy
from schemas.config_cascade import Redact as Redact
from schemas.errors import Fault
from schemas.faults import expectation, faults
from schemas.messages import Tier
from schemas.records import shown
from schemas.rules import Rule

_strict = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}
MAX_FILE_BYTES = 1 << 20
YEARS_S = 10 * 365 * 86_400  # no retention is longer

SiteName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z", title="1 to 64 of lower-case letters, digits and '-'")]
Bootstrap = Annotated[
    str,
    Meta(
        pattern=r"^[^\s,:\[\]]+:\d{1,5}(,[^\s,:\[\]]+:\d{1,5})*\Z|^\[[0-9a-fA-F:]+\]:\d{1,5}\Z",
        title="host:port, several separated by commas, such as 10.0.0.5:9092",
    ),
]
Share = Annotated[
    str,
    Meta(
        pattern=r"^(\d{1,2}(\.\d+)?%|\d{1,15}( ?(KiB|MiB|GiB|TiB))?)\Z",
        title="a share of the disk such as 10%, or bytes such as 2 GiB",
    ),
]
EngineName = Literal["tensorrt", "cuda", "openvino", "cpu"]


class InvalidConfig(Fault, ValueError):
    """A configuration that cannot be used; the message holds the path of the field, what was expected, and often the fix."""


class Kafka(msgspec.Struct, **_strict):
    """A Kafka cluster."""

    bootstrap_servers: Annotated[Bootstrap, Meta(description="host:port of one or more brokers, separated by commas")] = "127.0.0.1:9092"
    properties: Annotated[
        dict[str, str],
        Meta(
            description="more librdkafka settings for every client (security.protocol, sasl.username, ...); ${NAME} reads the environment"
        ),
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for server in self.bootstrap_servers.split(","):
            port = server.rpartition(":")[2]
            if port.isdigit() and not 1 <= int(port) <= 65_535:
                raise ValueError(f"bootstrap_servers is {self.bootstrap_servers!r:.80}: expected a port from 1 to 65535, not {port}")


class Topics(msgspec.Struct, **_strict):
    """How topics are created."""

    prefix: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9.-]{0,40}\Z",
            title="up to 40 of lower-case letters, digits, '.' and '-'",
            description="put before every topic and group name; lets several systems share a cluster",
        ),
    ] = ""
    partitions: Annotated[
        int, Meta(ge=1, le=256, description="partitions of every topic that is divided by source; never changed in place")
    ] = 4
    replication: Annotated[int, Meta(ge=1, le=9, description="copies of every partition; 1 for a cluster of one broker")] = 1
    readers: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(description="consumer groups of yours that may read, such as connect-*; topology check reports any other"),
    ] = ()
    frames_retention_s: Annotated[int, Meta(ge=10, le=YEARS_S, description="how long frames stay readable")] = 600
    frames_retention_bytes: Annotated[int, Meta(ge=1 << 20, le=MAX_BYTES, description="bytes of frames kept in each partition at most")] = (
        512 << 20
    )
    outbox_retention_s: Annotated[
        int, Meta(ge=60, le=YEARS_S, description="how long what waits for the link is kept: the longest outage to survive")
    ] = 86_400
    outbox_retention_bytes: Annotated[int, Meta(ge=1 << 20, le=MAX_BYTES, description="bytes of it kept in each partition at most")] = (
        4 << 30
    )
    accounts_keep_s: Annotated[
        int, Meta(ge=3600, le=YEARS_S, description="how long the account names the sequences of a silent epoch; then only numbers stay")
    ] = 90 * 86_400


class Ingress(msgspec.Struct, **_strict):
    """What the leaf takes in."""

    max_age_ms: Annotated[
        int, Meta(ge=1, le=86_400_000, description="a frame that waited longer at the broker is dropped, with the reason 'stale'")
    ] = 500
    max_frame_bytes: Annotated[int, Meta(ge=1024, le=64 << 20, description="a larger frame becomes a dead letter")] = 8 << 20


class Engine(msgspec.Struct, **_strict):
    """What runs the models."""

    prefer: Annotated[
        tuple[EngineName, ...], Meta(min_length=1, description="engines in order of preference; the first that works is used")
    ] = ("cpu",)
    workers: Annotated[int, Meta(ge=1, le=64, description="frames in work at a time")] = 2
    threads: Annotated[int, Meta(ge=1, le=64, description="threads of one inference; 1 is best on small and shared machines")] = 1
    work_limit_s: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="when the work on records gives no answer for so long, the process ends and is started again; "
            "a record that is found to be the cause becomes a dead letter",
        ),
    ] = 120.0
    slow_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="when one look in twenty takes longer, the leaf goes down to its next engine or smaller model; "
            "0: half of ingress.max_age_ms, but from 200 to 2000",
        ),
    ] = 0
    hang_ms: Annotated[
        int,
        Meta(
            ge=100, le=600_000, description="a look that takes longer is given up: the frame is judged by the next engine or smaller model"
        ),
    ] = 5000
    load_s: Annotated[
        float, Meta(gt=0, le=7200, description="how long an engine may take to load a model; TensorRT builds for minutes the first time")
    ] = 60.0


class Fallback(msgspec.Struct, **_strict):
    """A smaller model that a leaf goes down to when its detector fails or is slow, in the order of the file; what is not set is as in
    [detector]. Without any, nanodet-g goes down to smaller inputs by itself."""

    model: Annotated[str, Meta(description="path of an ONNX file, or nanodet-g; empty: that of [detector]")] = ""
    family: Annotated[
        Literal["", "nanodet", "yolov8", "detr", "classifier"], Meta(description="layout of its outputs; empty: that of [detector]")
    ] = ""
    sizes: Annotated[tuple[Annotated[int, Meta(ge=32, le=4096)], ...], Meta(min_length=1, description="input sides in pixels")] = (160,)
    quantized: Annotated[bool, Meta(description="use int8 weights (of nanodet-g)")] = True
    labels: Annotated[str, Meta(description="path of a text file with one class name a line; empty: that of [detector]")] = ""
    name: Annotated[str, Meta(max_length=128, description="name in verdicts; empty: made from the model, its sizes and precision")] = ""


class Detector(msgspec.Struct, **_strict):
    """The model and how its output is read."""

    model: Annotated[
        str, Meta(min_length=1, description="path of an ONNX file, or nanodet-g for the one that Headwater prepares itself")
    ] = "nanodet-g"
    family: Annotated[Literal["nanodet", "yolov8", "detr", "classifier"], Meta(description="layout of the model's outputs")] = "nanodet"
    sizes: Annotated[
        tuple[Annotated[int, Meta(ge=32, le=4096)], ...],
        Meta(min_length=1, description="input sides in pixels; with several the detections are united by non-maximum suppression"),
    ] = (224,)
    compute: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description="a leaf's look may take so many times the pixels of sizes, for a stream that the region's answers show to be "
            "served better by other sizes, as long as the leaf keeps up (of nanodet-g); 1: sizes always",
        ),
    ] = 4.0
    quantized: Annotated[bool, Meta(description="use int8 weights (of nanodet-g)")] = True
    labels: Annotated[str, Meta(description="path of a text file with one class name a line; empty: the 80 classes of COCO")] = ""
    min_score: Annotated[float, Meta(gt=0, lt=1, description="detections below it are not reported")] = 0.25
    nms_iou: Annotated[float, Meta(gt=0, le=1, description="overlap above which the weaker of two boxes of a class goes")] = 0.6
    name: Annotated[str, Meta(max_length=128, description="name in verdicts; empty: made from the model, its sizes and precision")] = ""
    generation: Annotated[
        int,
        Meta(ge=0, le=(1 << 31) - 1, description="counts roll-outs of the model; of two verdicts of one tier the newer generation's holds"),
    ] = 0
    degrade: Annotated[
        bool, Meta(description="go down to a smaller model when this one fails or is slow; false: only to the next engine")
    ] = True
    fallbacks: tuple[Fallback, ...] = ()


class SecondRegion(msgspec.Struct, **_strict):
    """A region that takes over when the first is away; it has this site in its list too."""

    region: Kafka = field(default_factory=Kafka)
    region_name: Annotated[SiteName, Meta(description="name of that region's site")] = "region-2"
    after_s: Annotated[float, Meta(ge=5, le=86_400, description="the first region is away for so long before the link turns here")] = 30.0
    return_after_s: Annotated[
        float, Meta(ge=5, le=86_400, description="the first region answers for so long before the link turns back")
    ] = 60.0


class Link(msgspec.Struct, **_strict):
    """The leaf's connection to its region."""

    region: Kafka = field(default_factory=Kafka)
    region_name: Annotated[SiteName, Meta(description="name of the region's site")] = "region"
    budget_bytes_per_s: Annotated[
        int, Meta(ge=0, le=MAX_BYTES, description="bytes a second on the wire, both directions together; 0: as many as the link carries")
    ] = 0
    burst_s: Annotated[float, Meta(gt=0, le=600, description="seconds of unspent budget that may be spent at once")] = 1.0
    pictures: Annotated[bool, Meta(description="send the full picture of each alert too; the region judges a smaller one in any case")] = (
        False
    )
    second: SecondRegion | None = None


class Region(msgspec.Struct, **_strict):
    """What a region serves."""

    sites: Annotated[tuple[SiteName, ...], Meta(description="the leaf sites that may send here; their topics are made from this list")] = ()
    inferences_per_s: Annotated[
        float, Meta(gt=0, le=1e6, description="capacity announced to each leaf; 0.8 of what was measured is a good start")
    ] = 2.0


class Disk(msgspec.Struct, **_strict):
    """What a leaf does when the disk of its Kafka runs low: lower lanes go first, with explained drops, alerts and verdicts last."""

    path: Annotated[
        str, Meta(description="folder of the broker's log, on this machine; empty: that of a local broker of ours, else there is no guard")
    ] = ""
    low: Annotated[
        Share,
        Meta(description="free space below which what the link has carried is deleted early, then evidence and pictures are not kept"),
    ] = "10%"
    very_low: Annotated[Share, Meta(description="free space below which frames are dropped at ingress, with the reason 'disk'")] = "4%"


class SharedZone(msgspec.Struct, **_strict):
    """A place that several sources see: alerts of one rule there, from whichever of them, are one incident if their times overlap."""

    name: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z", title="1 to 64 letters, digits, '.', '_' or '-'", description="name of the place")
    ]
    sources: Annotated[tuple[str, ...], Meta(min_length=1, description="names of the sources that see it")] = ()
    rules: Annotated[tuple[str, ...], Meta(description="names of the rules for which it is one place; empty: all")] = ()


class Incidents(msgspec.Struct, **_strict):
    """How alerts are joined into incidents."""

    gap_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="alerts of one rule and place that lie no further apart are one incident; more than a cool-down"),
    ] = 30.0


class Metrics(msgspec.Struct, **_strict):
    """Where Prometheus reads the figures of each process."""

    host: Annotated[str, Meta(description="address to listen on; loopback unless you mean otherwise")] = "127.0.0.1"
    ports: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=65_535)]],
        Meta(description="port by role (agent, link, resolver, producer); 0: any free one; a role that is not named gets one too"),
    ] = field(default_factory=dict)


class SiteConfig(msgspec.Struct, **_strict):
    """One site."""

    name: Annotated[SiteName, Meta(description="name of the site, unique in the fleet: lower-case letters, digits and '-'")]
    tier: Annotated[Literal["leaf", "region"], Meta(description="leaf: next to the cameras; region: larger models, serves leaves")]
    data_dir: Annotated[str, Meta(description="folder for what the site keeps on disk; empty: the user's data folder")] = ""
    kafka: Kafka = field(default_factory=Kafka)
    topics: Topics = field(default_factory=Topics)
    ingress: Ingress = field(default_factory=Ingress)
    engine: Engine = field(default_factory=Engine)
    detector: Detector = field(default_factory=Detector)
    rules: tuple[Rule, ...] = ()
    shared_zones: tuple[SharedZone, ...] = ()
    incidents: Incidents = field(default_factory=Incidents)
    policy: Policy = field(default_factory=Policy)
    audit: Audit = field(default_factory=Audit)
    evidence: Evidence = field(default_factory=Evidence)
    redact: tuple[Redact, ...] = ()
    link: Link | None = None
    region: Region = field(default_factory=Region)
    disk: Disk = field(default_factory=Disk)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        if wrong := [*self._conflicts()]:
            raise ValueError("\n".join(wrong))

    def _conflicts(self) -> Iterator[str]:
        """What is wrong between fields that are right by themselves."""
        names = [rule.name for rule in self.rules]
        for index, rule in enumerate(self.rules):
            if names.index(rule.name) != index:
                yield f"$.rules[{index}].name is {rule.name!r} again: expected a name of its own for each rule"
            yield from rule.wrong(f"$.rules[{index}]")
        yield from self._crossing_zones()
        for index, each in enumerate(self.redact):
            yield from each.wrong(f"$.redact[{index}]")
        yield from self.evidence.wrong("$.evidence")
        if self.tier == "region" and self.link is not None:
            yield "$.link is set on a region: expected none, since the leaf dials; [link] belongs into the leaf's file"
        if self.tier == "region" and not self.region.sites:
            yield "$.region.sites is empty: expected the names of the leaf sites that this region serves"
        if len(set(self.region.sites)) != len(self.region.sites):
            yield f"$.region.sites is {shown(self.region.sites)}: expected each site once"
        if self.name in self.region.sites:
            yield f"$.region.sites names {self.name!r}, this site itself: expected the leaf sites only"
        if self.link is not None and self.link.second is not None and self.link.second.region_name in (self.name, self.link.region_name):
            name = self.link.second.region_name
            yield f"$.link.second.region_name is {name!r}: expected a name that is neither this site's nor the first region's"
        if self.link is not None and self.link.region_name == self.name:
            yield f"$.link.region_name is {self.name!r}, this site's own name: expected the region's"

    def _crossing_zones(self) -> Iterator[str]:
        """A source has one place for each rule."""
        seen: dict[str, int] = {}
        taken: dict[tuple[str, str], int] = {}
        for index, zone in enumerate(self.shared_zones):
            if zone.name in seen:
                yield f"$.shared_zones[{index}].name is {zone.name!r} again: expected a name of its own for each zone"
            seen[zone.name] = index
            if not zone.sources:
                yield f"$.shared_zones[{index}].sources is empty: expected the names of the sources that see it"
            for source in dict.fromkeys(zone.sources):
                for rule in dict.fromkeys(zone.rules or ("",)):
                    others = [other for (name, of), other in taken.items() if name == source and (of == rule or "" in (of, rule))]
                    if others:
                        yield (
                            f"$.shared_zones[{index}].sources names {source!r:.80}, which $.shared_zones[{others[0]}] has for the same "
                            "rules: expected one zone for each source and rule"
                        )
                    taken.setdefault((source, rule), index)

    @property
    def tier_name(self) -> Tier:
        return Tier(self.tier)

    def place_of(self, rule: str, source: str) -> str:
        """Where alerts of a rule on a source belong, for incidents: the source itself, or `zone:` and the name of the zone it shares."""
        for zone in self.shared_zones:
            if source in zone.sources and (not zone.rules or rule in zone.rules):
                return f"zone:{zone.name}"
        return source


def parse(text: str, environment: Mapping[str, str], *, where: str = "the configuration") -> SiteConfig:
    """Read a site's TOML.

    Parameters
    ----------
    environment
        Where `${NAME}` in Kafka properties is looked up, so that secrets stay out of files.

    Raises
    ------
    InvalidConfig
        With the file, and for every fault the path of the field, its value and what was expected. Values of `properties` are not shown.
    """
    if len(text) > MAX_FILE_BYTES:
        raise InvalidConfig(f"{where} has {len(text)} characters: a site's file has at most {MAX_FILE_BYTES}")
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib lets through what int() and dates say of absurd values
        raise InvalidConfig(f"{where} is not TOML: {error}") from None
    wrong = [*_fill(tree, environment), *faults(tree, SiteConfig)]
    if not wrong:
        try:
            return msgspec.convert(tree, SiteConfig, strict=True)
        except msgspec.ValidationError as error:  # from __post_init__: what is wrong between fields
            message, _, path = str(error).partition(" - at `")
            wrong = [f"{path.rstrip('`')}.{message}" if path else message]
    lines = "\n".join(wrong).splitlines()
    if len(lines) == 1:
        raise InvalidConfig(f"{where}: {lines[0]}")
    raise InvalidConfig(f"{where} has {len(lines)} faults:" + "".join(f"\n  {line}" for line in lines))


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _fill(tree: dict[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Fill `${NAME}` in the values of both `properties` tables, in place; yields a fault for each name that is not set."""
    link = _table(tree, "link")
    clusters = {
        "$.kafka": tree.get("kafka"),
        "$.link.region": link.get("region"),
        "$.link.second.region": _table(link, "second").get("region"),
    }
    return fill_properties(clusters.items(), environment)


def fill_properties(tables: Iterable[tuple[str, Any]], environment: Mapping[str, str]) -> Iterator[str]:
    """Fill `${NAME}` in the values of `properties` of some tables of clusters, in place; yields a fault for each name that is not set."""
    for path, kafka in tables:
        properties = kafka.get("properties") if isinstance(kafka, dict) else None
        if not isinstance(properties, dict):
            continue
        for name, value in properties.items():
            if not isinstance(value, str):
                continue
            for variable in _VARIABLE.findall(value):
                if variable not in environment:
                    yield f"{path}.properties[{name!r}] reads ${{{variable}}}, which is not set in the environment: export it first"
            properties[name] = _VARIABLE.sub(lambda found: environment.get(found[1], ""), value)


def fields(kind: type = SiteConfig, prefix: str = "") -> Iterator[tuple[str, str, str, Any]]:
    """Every field of the configuration as (path, expectation, sentence, default), in the order of the structs."""
    hints = get_type_hints(kind, include_extras=True)
    for info in msgspec.structs.fields(kind):
        path, hint = f"{prefix}{info.encode_name}", hints[info.name]
        default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
        inner = next((arg for arg in (hint, *get_args(hint)) if isinstance(arg, type) and issubclass(arg, msgspec.Struct)), None)
        if inner is not None:
            yield from fields(inner, f"{path}[]." if get_origin(hint) is tuple else f"{path}.")
            continue
        sentence = next((meta.description for meta in getattr(hint, "__metadata__", ()) if meta.description), "")
        yield path, expectation(hint), sentence, None if default is msgspec.NODEFAULT else default


def site_folder(config: SiteConfig, default: PurePath) -> PurePath:
    """The folder of a site's own files: `data_dir`, else a folder under `default` named after the site."""
    return PurePath(config.data_dir) if config.data_dir else default / config.name
