"""The configuration of a producer that may publish to several leaf sites: the sites, and when it moves between them. One TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, field

from schemas.config import MAX_FILE_BYTES, Bootstrap, InvalidConfig, Kafka, SiteConfig, SiteName, Topics, fill_properties
from schemas.faults import faults

_strict = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}


class RoutedSite(msgspec.Struct, **_strict):
    """One leaf that may be published to."""

    name: Annotated[SiteName, Meta(description="name of the leaf, as its own file has it")]
    kafka: Kafka = field(default_factory=Kafka)
    topics: Topics = field(default_factory=Topics)
    bias_ms: Annotated[
        float, Meta(ge=0, le=10_000, description="added to its measured round trip: a site with a bias is used when no other is as near")
    ] = 0.0


class Routing(msgspec.Struct, **_strict):
    """When a producer moves from one site to another."""

    silent_s: Annotated[
        float, Meta(ge=0.1, le=60, description="a site is left when a record waits so long for its acknowledgement; see max_age_s")
    ] = 1.0
    probe_s: Annotated[float, Meta(ge=0.05, le=60, description="how often each site is asked (one small request)")] = 0.5
    probe_timeout_s: Annotated[float, Meta(ge=0.1, le=60, description="a site that has not answered for so long is not reachable")] = 1.0
    hold_s: Annotated[
        float, Meta(ge=0, le=86_400, description="how long a nearer site must be well and nearer before it is gone (back) to, at least")
    ] = 10.0
    hold_max_s: Annotated[
        float, Meta(ge=0, le=86_400, description="the same for a site that fails again and again; each time doubles it, up to here")
    ] = 300.0
    nearer_share: Annotated[float, Meta(ge=0, lt=1, description="nearer means a round trip shorter by this share ...")] = 0.2
    nearer_ms: Annotated[float, Meta(ge=0, le=10_000, description="... and by so many milliseconds")] = 2.0
    max_age_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="a frame that could not be sent for so long is dropped, with the reason 'too-old'")
    ] = 3.0
    queue_frames: Annotated[int, Meta(ge=1, le=100_000, description="frames of a source that wait at most, while a move is made")] = 256
    queue_bytes: Annotated[int, Meta(ge=1024, le=1 << 32, description="bytes of them")] = 64 << 20

    def __post_init__(self) -> None:
        if self.max_age_s <= self.silent_s:
            raise ValueError(f"max_age_s is {self.max_age_s:g}: expected more than silent_s, which is {self.silent_s:g}")
        if self.hold_max_s < self.hold_s:
            raise ValueError(f"hold_max_s is {self.hold_max_s:g}: expected at least hold_s, which is {self.hold_s:g}")


class Sites(msgspec.Struct, **_strict):
    """The leaf sites of a producer."""

    sites: Annotated[tuple[RoutedSite, ...], Meta(min_length=1, max_length=64, description="the leaves that may be published to")]
    routing: Routing = field(default_factory=Routing)

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        for index, name in enumerate(names):
            if names.index(name) != index:
                raise ValueError(f"sites[{index}].name is {name!r} again: expected a name of its own for each site")

    def configs(self) -> list[SiteConfig]:
        """Each site as a leaf's own file would describe it, as far as a producer needs it."""
        return [SiteConfig(name=site.name, tier="leaf", kafka=site.kafka, topics=site.topics) for site in self.sites]


def parse_sites(text: str, environment: Mapping[str, str], *, where: str = "the list of sites") -> Sites:
    """Read a file with `[[sites]]`; the same rules as of a site's own file hold (`schemas.config.parse`).

    Raises
    ------
    InvalidConfig
        With every fault, the path of its field and what was expected.
    """
    if len(text) > MAX_FILE_BYTES:
        raise InvalidConfig(f"{where} has {len(text)} characters: at most {MAX_FILE_BYTES} are read")
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where} is not TOML: {error}") from None
    listed = tree.get("sites")
    entries = listed if isinstance(listed, list) else []
    tables = [(f"$.sites[{index}].kafka", site.get("kafka")) for index, site in enumerate(entries) if isinstance(site, dict)]
    wrong = [*fill_properties(tables, environment), *faults(tree, Sites)]
    if not wrong:
        try:
            return msgspec.convert(tree, Sites, strict=True)
        except msgspec.ValidationError as error:  # what is wrong between fields
            wrong = [str(error)]
    raise InvalidConfig(f"{where}: {wrong[0]}" if len(wrong) == 1 else f"{where} has {len(wrong)} faults:\n  " + "\n  ".join(wrong))


def named_site(text: str, like: SiteConfig | None = None) -> SiteConfig:
    """A leaf from `NAME=HOST:PORT` or `HOST:PORT`, whose name is then made from the address. All else is as in `like`.

    Raises
    ------
    InvalidConfig
        If it has not this form.

    >>> named_site("gate=10.0.0.5:9092").name, named_site("10.0.0.5:9092").name
    ('gate', '10-0-0-5-9092')
    """
    name, _, servers = text.rpartition("=")
    like = like or SiteConfig(name="local", tier="leaf")
    if not name:
        name = re.sub(r"[^a-z0-9]+", "-", servers.partition(",")[0].lower()).strip("-")[:64]
    try:
        return msgspec.structs.replace(
            like,
            name=msgspec.convert(name, SiteName),
            kafka=msgspec.structs.replace(like.kafka, bootstrap_servers=msgspec.convert(servers, Bootstrap)),
        )
    except (msgspec.ValidationError, ValueError):
        raise InvalidConfig(
            f"{text!r:.120} is no site: expected HOST:PORT, or NAME=HOST:PORT with the leaf's name of lower-case letters, digits and '-'"
        ) from None
