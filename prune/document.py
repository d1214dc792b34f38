"""Strict YAML that remembers where everything stood, so that an error can point at it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prune.errors import PruneError

At = tuple[str | int, ...]  # the way to a value: ("steps", 1, "remove", "ratio")
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_COPIED = 10_000  # nodes that aliases may stand for in all, or a small file becomes a large one
_WORDS = {  # the only spellings; `no` is a word
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,30}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Document:
    """A mapping and the marks of its keys and values: `7:14` in a file, or the option of the command line."""

    name: str
    value: dict[str, Any]
    keys: dict[At, str] = field(default_factory=dict)
    values: dict[At, str] = field(default_factory=dict)

    def where(self, at: At = (), *, key: bool = False) -> str:
        """`recipe.yaml:7:14 steps[1].remove`: the place of a value, or its key's, or of the nearest thing around it."""
        marks = self.keys if key and at in self.keys else self.values
        known = next((marks[at[:n]] for n in range(len(at), -1, -1) if at[:n] in marks), "")
        return f"{known or self.name} {spell(at)}".strip()


def spell(at: At) -> str:
    """`steps[1].remove.ratio`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")


def read(path: str | Path, *, aliases: bool = False) -> Document:
    """The document in a file; PruneError with file:line:column for anything but one plain mapping.

    Refused: duplicate keys, tags, keys that are not text, more than 32 levels, more than 1 MB, and, unless `aliases`
    are let in, anchors and aliases.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PruneError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(content) > MAX_BYTES:
        raise PruneError("is larger than 1 MB, so it is not a recipe", where=str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PruneError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None
    return parse(text, str(path), aliases=aliases)


def parse(text: str, name: str, *, aliases: bool = False) -> Document:
    """The document in a text; see `read`."""
    document = Document(name, {})
    value = _only_value(text, document, aliases)
    if not isinstance(value, dict):
        raise PruneError(f"must be a mapping such as `model: bundled`, not {_kind(value)}", where=f"{name}:1:1")
    document.value.update(value)
    return document


def parse_value(text: str, name: str) -> Any:
    """One YAML value from the command line, as strict as a file; PruneError naming `name`."""
    return _only_value(text, Document(name, {}))


def _only_value(text: str, document: Document, aliases: bool = False) -> Any:
    events = _events(text, document.name)
    events = _written_out(events, document.name) if aliases else events
    next(events)  # the stream begins
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = _value(next(events), events, document, ())
    next(events)  # the document ends
    event = next(events)
    if not isinstance(event, yaml.StreamEndEvent):
        raise PruneError("holds a second document; a recipe is one", where=_place(document.name, event.start_mark))
    return value


def _events(text: str, name: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, [error.context, error.problem]))
        raise PruneError(f"is not YAML: {problem}", where=_place(name, mark)) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = f"{name}:{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        raise PruneError(
            f"is not YAML: the character #x{ord(text[error.position]):04x} may not stand here", where=where
        ) from None


def _written_out(events: Iterator[yaml.Event], name: str) -> Iterator[yaml.Event]:
    """The events with every alias replaced by what its anchor is at, which keeps its own place in the file."""
    anchored: dict[str, list[yaml.Event]] = {}
    noting: list[tuple[str, int, list[yaml.Event]]] = []  # anchors whose nodes have not ended: depth, events so far
    depth = copied = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            where = _place(name, event.start_mark)
            if event.anchor not in anchored:
                raise PruneError(
                    f"the alias *{event.anchor} stands for nothing that was written before it", where=where
                )
            found = anchored[event.anchor]
            copied += len(found)
            if copied > MAX_COPIED:
                raise PruneError(f"aliases stand for more than {MAX_COPIED} values; write them out", where=where)
        else:
            found = [copy.copy(event)]
            if anchor := getattr(event, "anchor", None):
                found[0].anchor = None  # type: ignore[attr-defined]  # only nodes have one
                noting.append((anchor, depth, []))
        opens = isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent))
        depth += opens - isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent))
        for _, _, noted in noting:
            noted += found
        while noting and noting[-1][1] == depth:
            anchor, _, noted = noting.pop()
            anchored[anchor] = noted
        yield from found


def _value(event: yaml.Event, events: Iterator[yaml.Event], document: Document, at: At) -> Any:
    where = _place(document.name, event.start_mark)
    _refuse_extras(event, at, f"{where} {spell(at)}".strip())
    document.values[at] = where
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event, where)
    if isinstance(event, yaml.SequenceStartEvent):
        return _list(events, document, at)
    return _mapping(events, document, at)


def _refuse_extras(event: yaml.Event, at: At, where: str) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise PruneError("anchors and aliases (& and *) are not read; write the value out", where=where)
    if tag := getattr(event, "tag", None):
        raise PruneError(f"tags such as {tag!r} are not read", where=where)
    if len(at) > MAX_DEPTH:
        raise PruneError(f"is nested more than {MAX_DEPTH} levels deep", where=where.split(" ")[0])


def _list(events: Iterator[yaml.Event], document: Document, at: At) -> list[Any]:
    items: list[Any] = []
    for event in iter(lambda: next(events), None):
        if isinstance(event, yaml.SequenceEndEvent):
            break
        items.append(_value(event, events, document, (*at, len(items))))
    return items


def _mapping(events: Iterator[yaml.Event], document: Document, at: At) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for event in iter(lambda: next(events), None):
        if isinstance(event, yaml.MappingEndEvent):
            break
        key = _key(event, document, at)
        if key in mapping:
            first = document.keys[(*at, key)].removeprefix(f"{document.name}:")
            raise PruneError(
                f"key {key!r} stands twice, first at {first}", where=_place(document.name, event.start_mark)
            )
        document.keys[(*at, key)] = _place(document.name, event.start_mark)
        mapping[key] = _value(next(events), events, document, (*at, key))
    return mapping


def _key(event: yaml.Event, document: Document, at: At) -> str:
    where = _place(document.name, event.start_mark)
    _refuse_extras(event, at, where)
    key = _scalar(event, where) if isinstance(event, yaml.ScalarEvent) else None
    if not isinstance(key, str):
        raise PruneError("a key must be text; put it in quotes", where=where)
    return key


def _scalar(event: yaml.ScalarEvent, where: str) -> Any:
    """Plain words by YAML 1.2, not 1.1: `1e-4` is a number, and `no`, `0777`, `1:30` are not what 1.1 makes of them."""
    text: str = event.value
    if event.style is not None:  # quoted, or a block: always text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        return text
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise PruneError(f"the number {text} is too large", where=where)
    return number


def _place(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name


def _kind(value: object) -> str:
    if value is None:
        return "an empty file"
    return "a list" if isinstance(value, list) else f"{value!r:.60}"
