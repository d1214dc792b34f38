"""Text to token batches: fair random windows for calibration and training, strided ones for evaluation."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from prune.errors import PruneError, unknown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Source = str | Path | Sequence[str]
Row = tuple[list[int], list[int]]  # the ids and the labels of one window

PYTHON_DOCS = "python-docs"
SPLITS = ("train", "heldout")  # of python-docs
DOCUMENTS = ("joined", "separate")  # how windows treat the bounds between documents
READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")

HEADING = re.compile(r" = [^=].* = \n?")  # of an article of WikiText, whose rows are paragraphs


class Known(NamedTuple):
    """A Hub dataset that has a name of its own here: where it is, its evaluation split, and how it is read."""

    source: str
    split: str
    streaming: bool = False
    samples: int | None = None  # windows to evaluate on where none are asked for


KNOWN = {
    "wikitext": Known("Salesforce/wikitext:wikitext-2-raw-v1", "test"),
    "c4": Known("allenai/c4:en", "validation", streaming=True, samples=256),
}
IGNORED = -100  # the label that losses leave out
SECTION = 8  # characters of a section per token of a window: about two windows, so that samples come from many places
BUFFER = 10_000  # sections held for shuffling


def batches(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    length: int,
    seed: int = 0,
    batch_size: int = 8,
    field: str = "text",
    split: str | None = None,
    streaming: bool = False,
    up_to: bool = False,
) -> list[dict[str, Tensor]]:
    """`samples` windows of `length` tokens, drawn at random and the same for the same seed.

    `source` is "python-docs", a local .txt, .jsonl, .json, .parquet or .csv file, "wikitext" or "c4" from the Hub, any
    other Hub dataset as `owner/name`, `owner/name:config` or either with `@revision`, or a list of texts. `split` is
    for python-docs and the Hub ("train"), `streaming` for the Hub. Long documents are cut into sections; sections are
    shuffled (through a buffer where there are very many), joined with the end token and cut into windows, which open
    with the beginning token where the tokenizer itself adds one. With `up_to`, a source that has fewer windows gives
    those it has.

    Returns input_ids, attention_mask and labels of shape (batch, length), int64; the last batch may be smaller.
    Raises PruneError where the source cannot be read or has too little text.
    """
    check(source, split=split)
    opening = _opening(tokenizer)
    _at_least(1, samples=samples, batch_size=batch_size)
    _at_least(2 + len(opening), length=length)
    rng = random.Random(seed)
    texts = _documents(source, split or "train", field, streaming, rng)
    sections = chain.from_iterable(_sections(text, SECTION * length) for text in texts)
    # python-docs come in random order already, and reading them all takes seconds.
    buffer = 4 * samples if source == PYTHON_DOCS else BUFFER
    tokens = _joined(_shuffled(sections, rng, buffer), tokenizer)
    rows: list[Row] = []
    while len(rows) < samples:
        ids = opening + list(islice(tokens, length - len(opening)))
        if len(ids) < length:
            if up_to and rows:
                break
            raise PruneError(
                f"gives {len(rows)} windows of {length} tokens, {samples} were asked", where=_label(source)
            )
        rows.append((ids, ids))
    return stacked(rows, length, batch_size, fill=0)


def windows(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    stride: int | None = None,
    samples: int | None = None,
    batch_size: int = 8,
    field: str = "text",
    split: str | None = None,
    documents: str = "joined",
    streaming: bool = False,
) -> list[dict[str, Tensor]]:
    """The whole text as windows for evaluation: every token is a label exactly once, at a position that is predicted.

    Documents stand in their own order. `joined`, they are one text with the end token between them, which is a label
    too, and a window may look back into the document before; `separate`, each has windows of its own and sees nothing
    of the others. A text opens with one such token (or the beginning one) that is only seen, never a label. Each window
    after the first of a text has `stride` new tokens (default: all but one) after context whose labels are -100. The
    last one is padded: attention_mask 0, labels -100. `samples` is the most windows to give; `split` is for python-docs
    ("heldout") and the Hub ("test"). Source, shapes and errors are those of `batches`.
    """
    check(source, split=split)
    stride = check_windows(tokenizer, length=length, stride=stride, samples=samples)
    _at_least(1, batch_size=batch_size)
    if documents not in DOCUMENTS:
        raise unknown("way to treat documents", documents, DOCUMENTS)
    samples = samples or (_known(source).samples if _is_known(source) else None)
    opening = _opening(tokenizer)
    body = length - len(opening)  # tokens of the text in a window
    texts = _documents(source, split or _evaluation_split(source), field, streaming, None)
    most = None if samples is None else body + (samples - 1) * stride
    # The first token of all needs one before it to be predicted from.
    before = [] if opening else _separator(tokenizer)
    together = [texts] if documents == "joined" else ([text] for text in texts)
    rows: list[Row] = []
    for own in together:
        tokens = list(islice(chain(before, _joined(own, tokenizer)), most))
        rows += _strided(tokens, opening, body, stride, counted=0 if opening else 1)
        if samples is not None and len(rows) >= samples:
            break
    if not rows:
        raise PruneError("gives no windows: it holds no text", where=_label(source))
    return stacked(rows[:samples], length, batch_size, fill=tokenizer.pad_token_id or 0)


def _strided(tokens: list[int], opening: list[int], body: int, stride: int, *, counted: int) -> Iterator[Row]:
    """One text's windows; its first `counted` tokens are never labels."""
    while counted < len(tokens):
        begin = max(0, counted - (body - stride))
        new = tokens[counted : begin + body]
        labels = [IGNORED] * (len(opening) + counted - begin) + new
        yield opening + tokens[begin:counted] + new, labels
        counted += len(new)


def longest_stride(tokenizer: PreTrainedTokenizerBase, length: int) -> int:
    """The new tokens in a window of `length`: all but one of context, and the beginning token where there is one."""
    return length - len(_opening(tokenizer)) - 1


def check_windows(
    tokenizer: PreTrainedTokenizerBase, *, length: int, stride: int | None = None, samples: int | None = None
) -> int:
    """The stride that `windows` takes; PruneError for numbers it refuses. Reads no text."""
    opening = _opening(tokenizer)
    _at_least(1, samples=1 if samples is None else samples)
    _at_least(2 + len(opening), length=length)
    stride = longest_stride(tokenizer, length) if stride is None else stride
    most = length - len(opening) - 1
    if not 1 <= stride <= most:
        raise PruneError(f"stride is {stride}; choices: 1 to {most} for windows of {length} tokens")
    return stride


def is_file(source: Source) -> bool:
    """Whether a source is a local file, which can be read at no cost to others."""
    return _kind(source) == "file"


def rows(source: Source, *, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a local file or a Hub dataset, column -> value, in their own order. Raises PruneError as `check`."""
    check(source, split=split)
    kind = _kind(source)
    if kind not in ("file", "hub"):
        raise PruneError("has no columns; give a .jsonl or .parquet file, or a Hub dataset", where=_label(source))
    if kind == "file":
        return _file_rows(_path(source))
    return _hub_rows(str(source), split or _evaluation_split(source), False, None)


def check(source: Source, *, split: str | None = None) -> None:
    """Raise the PruneErrors that can be known at once: a missing or empty file, an unknown suffix, name or split."""
    kind = _kind(source)
    if kind == "file":
        _check_file(_path(source))
    if kind == "memory" and not all(isinstance(text, str) for text in source):  # type: ignore[union-attr]
        raise PruneError("is not a list of texts", where=_label(source))
    if kind == "python-docs" and split not in (None, *SPLITS):
        raise unknown("split", split, SPLITS).at(PYTHON_DOCS)
    if split and kind in ("file", "memory"):
        raise PruneError(f"has no splits, {split!r} was asked; leave it out", where=_label(source))


def describe(source: Source, *, split: str | None = None, field: str = "text") -> dict[str, str]:
    """What stands in reports: `data`, and where the source has them `split` (the one `windows` takes) and `field`."""
    kind, found = _kind(source), {"data": _known(source).source if _is_known(source) else _label(source)}
    if kind in ("python-docs", "hub"):
        found["split"] = split or _evaluation_split(source)
    if kind == "hub" or (kind == "file" and _path(source).suffix.lower() != ".txt"):
        found["field"] = field
    return found


def fingerprint(source: Source, *, split: str | None = None) -> str:
    """What tells one text from another: the sha256 of the file or texts; for a Hub id, `id@revision`.

    With `split` None it is that of all splits. The Hub is not asked. Raises PruneError as `check` does.
    """
    check(source, split=split)
    kind = _kind(source)
    if kind == "hub":
        source = _known(source).source if _is_known(source) else source
        return f"{source}{'' if '@' in str(source) else '@main'}{f'#{split}' if split else ''}"
    if kind == "file":
        try:
            with _path(source).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(error, str(source)) from error
    if kind == "memory":
        return hashlib.sha256(json.dumps(list(source)).encode()).hexdigest()  # type: ignore[arg-type]
    from prune.bundled import text

    every = "".join(text.fingerprint(name) for name in SPLITS if split in (None, name))  # type: ignore[arg-type]
    return hashlib.sha256(every.encode()).hexdigest()


def _is_known(source: Source) -> bool:
    return isinstance(source, str) and source in KNOWN


def _known(source: Source) -> Known:
    return KNOWN[str(source)]


def _evaluation_split(source: Source) -> str:
    if _is_known(source):
        return _known(source).split
    return "heldout" if source == PYTHON_DOCS else "test"


def _kind(source: Source) -> str:
    """One of python-docs, file, hub and memory."""
    if not isinstance(source, (str, Path)):
        return "memory"
    if source == PYTHON_DOCS:
        return "python-docs"
    if source in KNOWN:
        return "hub"
    path, name = _path(source), str(source)
    # "data/corpus" is a file that is missing where there is a folder "data", and a Hub id elsewhere.
    beside = path.parent != Path() and path.parent.is_dir()
    if isinstance(source, Path) or path.exists() or beside or re.match(r"[.~/\\]|.*\.[A-Za-z]+$", name):
        return "file"
    if HUB_ID.fullmatch(name):
        return "hub"
    raise unknown(
        "data", name, (PYTHON_DOCS, *KNOWN, f"a local file ({', '.join(READERS)})", "a Hub dataset as owner/name")
    )


def _label(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"{len(source)} texts in memory"


def _path(source: Source) -> Path:
    return Path(str(source)).expanduser()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise PruneError("is a folder, not a file" if path.is_dir() else "no such file", where=str(path))
    if path.suffix.lower() not in READERS:
        raise unknown("kind of file", path.suffix or path.name, READERS).at(str(path))
    if path.stat().st_size == 0:
        raise PruneError("the file is empty", where=str(path))


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise PruneError(f"{name} is {value}; choices: {least} or more")


def _documents(source: Source, split: str, field: str, streaming: bool, rng: random.Random | None) -> Iterator[str]:
    """The texts of a source that are not blank; in random order where `rng` is given and any of them can be reached."""
    kind = _kind(source)
    if kind == "python-docs":
        texts = _python_docs(split, rng)
    elif kind == "memory":
        texts = iter(rng.sample(source, len(source)) if rng else source)  # type: ignore[arg-type]
    elif kind == "file":
        texts = _column(_file_rows(_path(source)), field, _label(source))
    else:
        known = KNOWN.get(str(source), Known(str(source), split, streaming))
        order = None if source == "wikitext" else rng  # whose rows are lines of articles, to be kept together
        texts = _column(_hub_rows(known.source, split, streaming or known.streaming, order), field, _label(source))
        if source == "wikitext":
            texts = _shuffled(_articles(texts), rng, BUFFER) if rng else _articles(texts)
    return (text for text in texts if text.strip())


def _articles(paragraphs: Iterable[str]) -> Iterator[str]:
    """The articles of WikiText, whose rows are lines: a title opens each."""
    lines: list[str] = []
    for line in paragraphs:
        if HEADING.fullmatch(line) and lines:
            yield "".join(lines)
            lines = []
        lines.append(line)
    yield "".join(lines)


def _python_docs(split: str, rng: random.Random | None) -> Iterator[str]:
    from prune.bundled import text

    names = text.names(split)  # type: ignore[arg-type]
    if rng:
        rng.shuffle(names)
    return chain.from_iterable(text.texts(name) for name in names)


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a local file, read as they are asked for; a .txt file is one row."""
    import datasets

    kind = READERS[path.suffix.lower()]
    options = {"sample_by": "document"} if kind == "text" else {}
    files = [re.sub(r"([*?\[])", r"[\1]", str(path.resolve()))]  # datasets takes a pattern, this is a name
    # Streaming writes no copy of the data, only lock files, which go with the folder.
    with TemporaryDirectory() as cache:
        with _reading(str(path)):
            found = datasets.load_dataset(
                kind, data_files=files, split="train", streaming=True, cache_dir=cache, **options
            )
        yield from _rows(found, str(path))


def _hub_rows(source: str, split: str, streaming: bool, rng: random.Random | None) -> Iterator[dict[str, Any]]:
    """The rows of a Hub dataset, shuffled where it is on disk; a streamed one is shuffled by the caller's buffer."""
    import datasets

    parts = HUB_ID.fullmatch(source)
    assert parts, source
    with _reading(source):
        found = datasets.load_dataset(
            parts["name"], parts["config"], split=split, revision=parts["revision"], streaming=streaming
        )
    if rng and not streaming:
        found = map(found.__getitem__, rng.sample(range(len(found)), len(found)))
    return _rows(found, source)


def _rows(found: Iterable[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """Rows read some at a time, so that the logger is itself again whenever the caller has the word."""
    iterator = iter(found)
    while True:
        with _reading(where):
            rows = list(islice(iterator, 16))
        if not rows:
            return
        yield from rows


def _column(rows: Iterator[dict[str, Any]], field: str, where: str) -> Iterator[str]:
    for row in rows:
        if field not in row:
            raise unknown("field", field, row).at(where)
        if not isinstance(row[field], str | None):
            raise PruneError(f"field {field!r} holds {type(row[field]).__name__}, not text", where=where)
        yield row[field] or ""


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """How `datasets` fails to find or read data, as one line that names it: raised, and not logged as well."""
    from datasets.exceptions import DatasetsError

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]  # the latter tells of each retry
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # Arrow's and JSON's are ValueErrors
        raise _unreadable(error, where) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _unreadable(error: Exception, where: str) -> PruneError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return PruneError(f"cannot be read: {reason[:300]}", where=where)


def _sections(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of about `size` characters, cut before a line or a word where there is one."""
    start = 0
    while len(text) - start > size:
        half, end = start + size // 2, start + size
        cut = max(text.rfind("\n", half, end), 0) or max(text.rfind(" ", half, end), 0) or end
        yield text[start:cut]
        start = cut
    yield text[start:]


def _shuffled(items: Iterable[str], rng: random.Random, buffer: int) -> Iterator[str]:
    """`items` in random order; where there are more than `buffer`, each gives its place to one that comes later."""
    items = iter(items)
    held = list(islice(items, buffer))
    for item in items:
        index = rng.randrange(buffer)
        yield held[index]
        held[index] = item
    rng.shuffle(held)
    yield from held


def _joined(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """The tokens of `texts`, with the end token between them."""
    between: list[int] = []
    for text in texts:
        yield from between
        yield from tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        between = _separator(tokenizer)


def _separator(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return [token for token in ends if token is not None][:1]


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning token, for tokenizers that open every text with one: some models are lost without it."""
    added = list(tokenizer("", verbose=False)["input_ids"])
    return added if added == [tokenizer.bos_token_id] else []


def stacked(rows: list[Row], length: int, batch_size: int, *, fill: int) -> list[dict[str, Tensor]]:
    """(ids, labels) rows as batches, padded to `length`."""
    import torch

    def batch(part: list[Row]) -> dict[str, Tensor]:
        missing = [length - len(ids) for ids, _ in part]
        return {
            "input_ids": torch.tensor([ids + [fill] * n for (ids, _), n in zip(part, missing, strict=True)]),
            "attention_mask": torch.tensor([[1] * (length - n) + [0] * n for n in missing]),
            "labels": torch.tensor([labels + [IGNORED] * n for (_, labels), n in zip(part, missing, strict=True)]),
        }

    return [batch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
