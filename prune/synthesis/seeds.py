"""Seeds: instructions from a JSON, JSONL, YAML or parquet file, or a Hub dataset, read as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prune import data, files
from prune.document import parse_value
from prune.errors import PruneError, unknown
from prune.instructions import ANSWERS, QUESTIONS, with_instance
from prune.synthesis.items import Item

SUFFIXES = (".json", ".jsonl", ".yaml", ".yml", ".parquet")
SKILL, DIFFICULTY = "general", "any"  # of seeds that state none


def seeds(source: str | Path, *, field: str | None = None, split: str | None = None) -> Iterator[Item]:
    """The seeds of a source. `field` holds the instruction, `instruction` or `prompt` when left out.

    A row has the instruction, and may have `input` (put under it), an answer (`output`, `response`, `answer`),
    `skill` and `difficulty`; or it has `messages`, of which the first two are taken. PruneError for a row that has no
    instruction, with its place.
    """
    empty = True
    for number, (where, row) in enumerate(_rows(source, split)):
        empty = False
        yield _item(row, number, field, where)
    if empty:
        raise PruneError("holds no seeds", where=str(source))


def fingerprint(source: str) -> str:
    """What tells one source from another: the sha256 of a file, the id of a Hub dataset."""
    if not _is_file(source):
        return data.fingerprint(source)
    return files.sha256(_checked(source))


def known(source: str | Path, *, field: str | None = None, split: str | None = None) -> Iterator[Item]:
    """The seeds of a local file; none of the Hub, which is asked for nothing. PruneError for what is wrong."""
    if _is_file(source):
        yield from seeds(source, field=field, split=split)
    else:
        data.check(source, split=split)


def _is_file(source: str | Path) -> bool:
    path = Path(source).expanduser()
    return path.exists() or path.suffix[1:].isalpha() or isinstance(source, Path)


def _checked(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("kind of file", path.suffix or path.name, SUFFIXES).at(str(source))
    if not path.is_file():
        raise PruneError("is a folder, not a file" if path.is_dir() else "no such file", where=str(source))
    return path


def _rows(source: str | Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """Each row, and where it stands."""
    if not _is_file(source):
        yield from ((f"{source} row {n}", row) for n, row in enumerate(data.rows(source, split=split or "train")))
        return
    path = _checked(source)
    if split:
        raise PruneError(f"has no splits, {split!r} was asked; leave it out", where=str(source))
    if path.suffix.lower() == ".jsonl":
        yield from _lines(path)
    elif path.suffix.lower() == ".parquet":
        yield from ((f"{path} row {n}", row) for n, row in enumerate(data.rows(path)))
    else:
        yield from _listed(path)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in _readable(enumerate(lines, 1), path):
            if line.strip():
                yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON or YAML list."""
    text = "".join(_readable(iter([path.read_bytes()]), path, decode=True))
    rows = _json(text, str(path)) if path.suffix.lower() == ".json" else parse_value(text, str(path))
    if not isinstance(rows, list):
        raise PruneError("must be a list of seeds, as in [{skill: ..., instruction: ...}]", where=str(path))
    yield from ((f"{path} [{number}]", row) for number, row in enumerate(rows))


def _readable(pieces: Iterator[Any], path: Path, *, decode: bool = False) -> Iterator[Any]:
    try:
        for piece in pieces:
            yield piece.decode("utf-8-sig") if decode else piece
    except UnicodeDecodeError as error:
        raise PruneError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PruneError(f"cannot be read as JSON: {error}", where=where) from None


def _item(row: Any, number: int, field: str | None, where: str) -> Item:
    if isinstance(row, str):
        row = {"instruction": row}
    if not isinstance(row, dict):
        raise PruneError("a seed is a mapping such as {skill, difficulty, instruction}", where=where)
    said, answer = (
        _told(row, field, where) if field or row.get("messages") is None else _messages(row["messages"], where)
    )
    if not said.strip():
        raise PruneError("has an empty instruction", where=where)
    return Item(
        id=f"seed-{number}",
        seed=f"seed-{number}",
        skill=_label(row, "skill", SKILL, where),
        difficulty=_label(row, "difficulty", DIFFICULTY, where),
        instruction=_unicode(said).strip(),
        answer=_unicode(answer).strip(),
    )


def _told(row: Mapping[str, Any], field: str | None, where: str) -> tuple[str, str]:
    name = field or next((name for name in QUESTIONS if row.get(name) is not None), "instruction")
    if name not in row:
        raise unknown("field", name, map(str, row)).at(where)
    row = with_instance(row, where)
    answer = next((row[known] for known in ANSWERS if row.get(known) is not None), "")
    parts = [row[name], row.get("input") or "", answer]
    if not all(isinstance(part, str) for part in parts):
        raise PruneError("instruction, input and answer must be text", where=where)
    return "\n\n".join(filter(None, parts[:2])), parts[2]


def _messages(messages: Any, where: str) -> tuple[str, str]:
    try:
        said = [(message["role"], message["content"]) for message in messages]
        (_, instruction), *rest = [(role, text) for role, text in said if role != "system"]
    except (TypeError, KeyError, ValueError):
        raise PruneError("messages must be a list of {role, content}, the user's first", where=where) from None
    answer = rest[0][1] if rest else ""
    if not isinstance(instruction, str) or not isinstance(answer, str):
        raise PruneError("the content of messages must be text", where=where)
    return instruction, answer


def _unicode(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _label(row: dict[str, Any], name: str, otherwise: str, where: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        return otherwise
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise PruneError(f"{name} must be a word or a number", where=where)
    return _unicode(str(value))
