"""A site's file written out: every field with its sentence, what it takes and its default, so that the file explains itself.

What is at its default stands in a comment; taking the `#` away changes nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from schemas.config import SiteConfig
from schemas.faults import expectation, unwrap

WIDTH = 118
_EXAMPLES = {
    "rules": """\
# [[rules]]
# name = "person-at-gate"
# label = "person"
# min_score = 0.6
# zone = [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]
""",
    "shared_zones": """\
# [[shared_zones]]
# name = "gate"
# sources = ["cam-1", "cam-2"]
""",
    "redact": """\
# [[redact]]
# label = "person"
# how = "blur"
""",
    "detector.fallbacks": """\
# [[detector.fallbacks]]
# sizes = [160]
""",
}

_NOT_FOR = {"leaf": {"region"}, "region": {"link", "rules", "ingress", "policy", "evidence", "redact"}}


def document(values: Mapping[str, Any]) -> str:
    """The documented file of a site.

    Parameters
    ----------
    values
        What is not at its default, nested as in TOML: `{"name": "leaf-1", "tier": "leaf"}`. `name` and `tier` must be among them.
    """
    tier = values["tier"]
    lines = [
        f"# Headwater: the {tier} site {values['name']!r}. `headwater config check` says whether this file is right.",
        "# What stands in a comment is the default: take the # away to change it.",
        "",
    ]
    lines += _table(SiteConfig, "", values, skip=_NOT_FOR[tier])
    return "\n".join(lines) + "\n"


def _table(kind: type[msgspec.Struct], path: str, values: Mapping[str, Any] | None, skip: Collection[str] = ()) -> list[str]:
    """The fields of a table, plain ones first, as TOML wants them. `values` is None for a table that is not there by default."""
    hints = get_type_hints(kind, include_extras=True)
    plain: list[str] = []
    tables: list[str] = []
    for info in msgspec.structs.fields(kind):
        name, hint = info.encode_name, hints[info.name]
        inner, metas = unwrap(hint)
        if name in skip:
            continue
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            optional = info.default is None
            given = (values or {}).get(name)
            there = values is not None and not (optional and given is None)
            title = f"{path}{name}"
            tables += ["", *_comment(inner.__doc__ or ""), f"{'' if there else '# '}[{title}]"]
            tables += _table(inner, f"{title}.", (given or {}) if there else None)
        elif get_origin(inner) is tuple and isinstance(item := unwrap(get_args(inner)[0])[0], type) and issubclass(item, msgspec.Struct):
            title = f"{path}{name}"
            tables += ["", *_comment(f"{item.__doc__} One [[{title}]] for each; for example:"), *_EXAMPLES[title].splitlines()]
            tables += _fields_of(item)
        else:
            sentence = next((meta.description for meta in metas if meta.description), "")
            default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
            plain += _comment(_told(sentence, hint))
            if values is not None and name in values:
                plain.append(assign(name, values[name]))
            elif default is msgspec.NODEFAULT:
                plain.append(f"# {name} =")
            else:
                plain.append(f"# {assign(name, default)}")
    return plain + tables


def _fields_of(kind: type[msgspec.Struct]) -> list[str]:
    """What a table that may stand many times takes, as a list in comments."""
    hints = get_type_hints(kind, include_extras=True)
    lines = ["#"]
    for info in msgspec.structs.fields(kind):
        sentence = next((meta.description for meta in unwrap(hints[info.name])[1] if meta.description), "")
        default = "" if info.required else f"; default {assign(info.encode_name, info.default).partition(' = ')[2]}"
        lines += textwrap.wrap(
            f"{info.encode_name}: {_told(sentence, hints[info.name])}{default}",
            WIDTH,
            initial_indent="#   ",
            subsequent_indent="#     ",
        )
    return lines


def _told(sentence: str, hint: Any) -> str:
    words = expectation(hint)
    return sentence if words == "text" else f"{sentence} ({words})"


def assign(name: str, value: Any) -> str:
    """`name = value` as one line of TOML."""
    if isinstance(value, Mapping):  # inline, since a comment can hold one line only
        inside = ", ".join(tomli_w.dumps({key: item}).strip() for key, item in value.items())
        return f"{name} = {{ {inside} }}" if inside else f"{name} = {{}}"
    if isinstance(value, tuple | list):
        inside = ", ".join(tomli_w.dumps({"v": item}).strip().removeprefix("v = ") for item in value)
        return f"{name} = [{inside}]"
    return tomli_w.dumps({name: value}).strip()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")
