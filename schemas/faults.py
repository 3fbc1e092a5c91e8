"""What is wrong in a tree of values (from TOML) against a struct's annotations: every fault, with path, value and expectation.

msgspec stops at the first fault and does not show the value; a person who writes a file wants all of them, in words.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from schemas.records import shown, text_fault

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_ODD_TEXT = "expected text without NUL characters"
_BEYOND = 1 << 50  # an upper bound that is there for safety and tells a person nothing
_NUMBERS = {int: "whole number", float: "number"}


def faults(value: Any, hint: Any, path: str = "$", *, hidden: bool = False) -> Iterator[str]:
    """Every fault of a value, as `path is value: expected ...`.

    Parameters
    ----------
    hint
        A struct, or any annotation that such a struct's field may have.
    hidden
        Do not show values: they may be secrets.
    """
    plain, metas = unwrap(hint)
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        yield from _struct_faults(value, plain, path)
    elif get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis:
        if not isinstance(value, list | tuple):
            yield _fault(value, hint, path, hidden)
            return
        count = len(value)
        for index, item in enumerate(value):
            yield from faults(item, get_args(plain)[0], f"{path}[{index}]", hidden=hidden)
        if not all(_fits(count, meta) for meta in metas):
            yield f"{path} has {count} item{'' if count == 1 else 's'}: expected {expectation(hint)}"
    elif get_origin(plain) is dict:
        if not isinstance(value, Mapping):
            yield _fault(value, hint, path, hidden)
            return
        for name, item in value.items():
            where = f"{path}.{name}" if _BARE.match(name) else f"{path}[{shown(name)}]"
            if text_fault(name):
                yield f"{where}: {_ODD_TEXT}"
            yield from faults(item, get_args(plain)[1], where, hidden=hidden)
    else:
        try:
            checked = msgspec.convert(value, hint, strict=True)
        except (msgspec.ValidationError, ValueError, OverflowError):
            yield _fault(value, hint, path, hidden)
            return
        if isinstance(checked, float) and not math.isfinite(checked):
            yield f"{path} is {checked}: expected a finite number"
        elif isinstance(checked, str) and text_fault(checked):
            yield f"{path}: {_ODD_TEXT}"


def _struct_faults(value: Any, kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{path} is {_shown(value)}: expected a table"
        return
    hints = get_type_hints(kind, include_extras=True)
    known = {info.encode_name: info for info in msgspec.structs.fields(kind)}
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            yield f"{path}.{name:.80} is unknown: " + (f"did you mean {close[0]}?" if close else f"known here are {', '.join(known)}")
    for name, info in known.items():
        where = f"{path}.{name}"
        if name in value:
            yield from faults(value[name], hints[info.name], where, hidden=name == "properties")
        elif info.required:
            yield f"{where} is missing: expected {expectation(hints[info.name])}"


def _fault(value: Any, hint: Any, path: str, hidden: bool) -> str:
    told = f"a value of type {type(value).__name__}" if hidden else _shown(value)
    choices = _choices(hint)
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"{path} is {told}: expected {expectation(hint)}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, Mapping) else shown(value)


def _choices(hint: Any) -> list[str]:
    plain, _ = unwrap(hint)
    return [str(choice) for choice in get_args(plain)] if get_origin(plain) is Literal else []


def unwrap(hint: Any) -> tuple[Any, tuple[Meta, ...]]:
    """An annotation without its `Annotated` and without None, and what each `Meta` of it said."""
    if get_origin(hint) is Annotated:
        plain, metas = unwrap(get_args(hint)[0])
        return plain, (*metas, *(meta for meta in hint.__metadata__ if isinstance(meta, Meta)))
    some = [arg for arg in get_args(hint) if arg is not type(None)]
    if get_origin(hint) in {Union, type(int | None)} and len(some) == 1:
        return unwrap(some[0])
    return hint, ()


def _fits(length: int, meta: Meta) -> bool:
    return (meta.min_length or 0) <= length <= (length if meta.max_length is None else meta.max_length)


def expectation(hint: Any) -> str:
    """What a field takes, in words: `a whole number from 1 to 256`. `Meta(title=...)` says it better than a pattern could."""
    plain, metas = unwrap(hint)
    if title := next((meta.title for meta in reversed(metas) if meta.title), None):
        return title
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return "a table"
    if get_origin(plain) is Literal:
        return " or ".join(repr(choice) for choice in get_args(plain))
    if get_origin(plain) is dict:
        return f"a table of names, each with {expectation(get_args(plain)[1])}"
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if items[-1] is Ellipsis:
            return f"an array{_length(metas, 'items')}, of {expectation(items[0])} each"
        return f"[{', '.join(expectation(item) for item in items)}]"
    if plain in _NUMBERS:
        return f"a {_NUMBERS[plain]}{_bounds(metas)}"
    if plain is str:
        pattern = next((f" that matches {meta.pattern}" for meta in metas if meta.pattern), "")
        return f"text{pattern}{_length(metas, 'characters')}"
    return "true or false" if plain is bool else str(plain)


def _bounds(metas: tuple[Meta, ...]) -> str:
    def bound(name: str) -> Any:
        return next((found for meta in metas if (found := getattr(meta, name)) is not None), None)

    low = next((f" {word} {bound(name):.12g}" for name, word in (("ge", "from"), ("gt", "above")) if bound(name) is not None), "")
    high = next((f"{word} {bound(name):.12g}" for name, word in (("le", "to"), ("lt", "below")) if (bound(name) or _BEYOND) < _BEYOND), "")
    if not high:
        return low
    if high.startswith("to") and not low.startswith(" from"):
        high = high.replace("to", "up to", 1)
    return f"{low}{' and' if low and not (low.startswith(' from') and high.startswith('to')) else ''} {high}"


def _length(metas: tuple[Meta, ...], of: str) -> str:
    least = next((meta.min_length for meta in metas if meta.min_length is not None), None)
    most = next((meta.max_length for meta in metas if meta.max_length is not None), None)
    if least == 1 and most is None:
        return ", not empty"
    if least is not None and most is not None:
        return f" of {least} to {most} {of}"
    if most is not None:
        return f" of at most {most} {of}"
    return f" of at least {least} {of}" if least is not None else ""
