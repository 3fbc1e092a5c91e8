"""Text from outside, made fit for a terminal and a log: control characters are shown, not obeyed."""

from __future__ import annotations


def shown(text: str, keep: str = "") -> str:
    r"""The text with every character that does not print written as its escape (`\x1b`), but for those in `keep`.

    So are halves of surrogate pairs, which no output could encode, and marks that turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def shown_json(document: str) -> str:
    r"""JSON with every character that does not print written as JSON's own escape (`\u009b`), line breaks between values left alone: it
    says the same, and a terminal that it is printed to obeys none of it."""
    if document.isprintable():
        return document
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in document)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
