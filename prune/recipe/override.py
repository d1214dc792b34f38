"""`--set steps.0.ratio=0.5`: one value of a recipe, named by its path and read as YAML."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from prune.document import At, Document, parse_value
from prune.errors import PruneError, unknown
from prune.recipe.bind import options
from prune.run import Calibration

_KEYS = ("model", "output", "seed", "device", "dtype", "calibration", "steps")


def override(document: Document, text: str, words: Mapping[str, Callable]) -> Document:
    """A new document with one value replaced, or added where the place takes it; its marks name the command line.

    PruneError, with the nearest name, for a path that leads nowhere.
    """
    label = f"--set {text}"
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise PruneError("needs PATH=VALUE, as in --set steps.0.ratio=0.5", where=label)
    try:
        tree = copy.deepcopy(document.value)
        at = _resolve(tree, path.split("."), words)
        _put(tree, at, parse_value(value, label))
    except PruneError as error:
        raise error.at(label) from None
    values = {known: mark for known, mark in document.values.items() if known[: len(at)] != at}
    keys = {known: mark for known, mark in document.keys.items() if known[: len(at)] != at}
    return Document(document.name, tree, keys | {at: label}, values | {at: label})


def _resolve(tree: dict[str, Any], parts: list[str], words: Mapping[str, Callable]) -> At:
    """The path in the recipe that the dotted one means; makes room for it where the recipe uses a short form."""
    head, *rest = parts
    _known("key", head, _KEYS)
    if not rest:
        return (head,)
    if head == "model":
        _known("key of model", rest[0], ("id", "revision"))
        tree["model"] = {"id": tree["model"]} if isinstance(tree.get("model"), str) else tree.get("model")
    if head == "calibration":
        _known("key of calibration", rest[0], [field.name for field in fields(Calibration)])
        tree["calibration"] = tree.get("calibration") or {}
    if head == "steps":
        return _resolve_step(tree.get("steps"), rest, words)
    return (head, *_inside(tree.get(head), rest))


def _resolve_step(steps: object, parts: list[str], words: Mapping[str, Callable]) -> At:
    index = _index(steps, parts[0], "steps")
    assert isinstance(steps, list)
    word, step = _open_step(steps, index)
    rest = parts[2:] if parts[1:2] == [word] else parts[1:]
    if not parts[1:]:
        return ("steps", index)
    if not rest:
        return ("steps", index, word)
    if word in words:
        _known(f"option of {word}", rest[0], options(words[word], step))
    return ("steps", index, word, *_inside(step, rest))


def _open_step(steps: list[Any], index: int) -> tuple[str, Any]:
    """The word and options of a step; `- evaluate` and `- evaluate:` are opened up to take options."""
    step = steps[index]
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, dict) or len(step) != 1:
        raise PruneError(f"steps.{index} is not one word with its options")
    word = next(iter(step))
    steps[index] = {word: step[word] or {}}
    return word, steps[index][word]


def _inside(value: object, parts: list[str]) -> At:
    """The way on through the values that are there. The last name of a mapping may be new."""
    at: At = ()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(value, dict):
            if not last:
                _known("name", part, value)
            at, value = (*at, part), value.get(part)
        elif isinstance(value, list):
            index = _index(value, part, ".".join(parts[:number]))
            at, value = (*at, index), value[index]
        else:
            raise PruneError(f"{'.'.join(parts[:number]) or 'it'} has nothing inside")
    return at


def _index(items: object, part: str, name: str) -> int:
    count = len(items) if isinstance(items, list) else 0
    if not part.isdecimal() or int(part) >= count:
        raise PruneError(f"{part!r} is not the place of an entry of {name}: it has {count}, counted from 0")
    return int(part)


def _known(kind: str, name: str, choices: Any) -> None:
    if name not in choices:
        raise unknown(kind, name, choices)


def _put(tree: Any, at: At, value: Any) -> None:
    for part in at[:-1]:
        tree = tree[part]
    tree[at[-1]] = value
