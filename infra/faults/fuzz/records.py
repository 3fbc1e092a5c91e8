"""A harness for every struct that travels as JSON, found by walking the subclasses of `Record`, so that none is forgotten."""

from __future__ import annotations

import datetime as dt
import enum
import importlib
import pkgutil
import string
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from infra.faults.fuzz.harness import harness, must, refusing, text_of
from schemas.records import InvalidRecord, Json, Record

ROOMS = ("schemas", "streams", "agents")
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
# Text that satisfies the patterns of `schemas.identity` and `schemas.messages`: the first that fits is taken.
_TEXTS = ("cam-1", "leaf-1", "0190f1d2-7f00-7000-8000-000000000001", "cam-1/e1/7", "a" * 64, "alert-1234", "[]", "x", "[[0,4]]")


def kinds(base: type[msgspec.Struct] = Record) -> list[type[Record]]:
    """Every struct of the product that travels as JSON."""
    for room in ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            if not module.name.rpartition(".")[2].startswith("_"):
                _imported(module.name)
    return sorted(set(_subclasses(base)), key=lambda kind: kind.__name__)


def _imported(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ROOMS:
            raise
        # an engine that is not installed here


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        if kind.__module__.partition(".")[0] in ROOMS:
            yield kind
        yield from _subclasses(kind)


def sample(kind: type[msgspec.Struct]) -> Any:
    """A valid value of a struct, made from its annotations; raises `InvalidRecord` if more than those decides what is valid."""
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{info.name: _value(hints[info.name], info.name) for info in msgspec.structs.fields(kind) if info.required})


def _value(hint: Any, name: str = "") -> Any:
    metas: list[Meta] = []
    while get_origin(hint) is Annotated:
        metas += [meta for meta in hint.__metadata__ if isinstance(meta, Meta)]
        hint = get_args(hint)[0]
    if get_origin(hint) in {Union, type(int | None)}:
        return None if type(None) in get_args(hint) else _value(get_args(hint)[0], name)
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if get_origin(hint) is tuple:
        inner, *more = get_args(hint)
        if more and more[0] is not Ellipsis:
            return tuple(_value(each) for each in get_args(hint))
        least = max((meta.min_length or 0 for meta in metas), default=0)
        return (_value(inner, name),) * least
    if hint is str:
        spec: Any = Annotated[(str, *metas)] if metas else str
        for text in (*_TEXTS, *string.ascii_letters, *string.digits) if name not in ("id", "record") else ("cam-1/e1/7", *_TEXTS):
            try:
                return msgspec.convert(text, spec)
            except msgspec.ValidationError:
                continue
        raise InvalidRecord(f"no sample text fits the field {name}")
    if hint in (int, float):
        low = next((meta.ge for meta in metas if meta.ge is not None), None)
        above = next((meta.gt for meta in metas if meta.gt is not None), None)
        return hint(low if low is not None else above + 1 if above is not None else 0)
    if hint is bool:
        return False
    if hint is dt.datetime:
        return NOON
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next(iter(hint))
    if isinstance(hint, type) and issubclass(hint, Json):
        return hint.from_json("[]")
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return sample(hint)
    if get_origin(hint) is dict:
        return {}
    raise InvalidRecord(f"no sample is known for {hint}")


# Values of structs of which more than the annotations decides what is valid: `{Kind: lambda: Kind(...)}`.
SAMPLES: dict[type[Record], Callable[[], Record]] = {}


def valid(kind: type[Record]) -> list[bytes]:
    """A valid value as bytes; none if the annotations do not say enough, and `SAMPLES` has none."""
    try:
        return [(SAMPLES[kind]() if kind in SAMPLES else sample(kind)).to_bytes()]
    except InvalidRecord:
        return []


def _seeds(kind: type[Record]) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        return [*valid(kind), b"{}", b"null", b"[]", b""]

    return made


def _law(kind: type[Record]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        with refusing(InvalidRecord):
            value = kind.from_bytes(data)
            written = value.to_bytes()
            again = kind.from_bytes(written)
            must(again == value, "what was read differs once it is written and read again")
            must(again.to_bytes() == written, "what is written twice differs")
            must(len(written) <= kind.max_bytes, "it writes more than it may")

    return check


for _kind in kinds():
    harness(f"record.{_kind.__name__}", _seeds(_kind))(_law(_kind))


def nested() -> list[type[Json]]:
    """Every value that is nested as a JSON string."""
    return sorted(set(_subclasses(Json)), key=lambda kind: kind.__name__)


def _nested_law(kind: type[Json]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        with refusing(InvalidRecord):
            value = kind.from_json(text_of(data))
            must(kind.from_json(value.to_json()) == value, "what was read differs once it is written and read again")
            repr(value), hash(value)

    return check


for _nested in nested():
    harness(
        f"json.{_nested.__name__}",
        [b"[]", b"[[0,4],[6,9]]", b"[[0.1,0.2],[0.5,0.5],[1,0]]", b'[["person",0.9,0.1,0.1,0.5,0.5,null],["car",0.5,0,0,1,1,7]]', b"null"],
        cost=0.1,
    )(_nested_law(_nested))
