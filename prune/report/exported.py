"""What the record of an export says, in words: the same facts for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune.report.table import size

Record = Mapping[str, Any]
SHOWN = {"format", "dtype", "opset", "as", "code", "parity", "files", "needs", "notes", "perplexity_change"}


def kind(record: Record) -> str:
    """Format, type and the like: "onnx, fp32, opset 18"."""
    said = [str(record[name]) for name in ("format", "dtype") if record.get(name)]
    said += [f"opset {record['opset']}"] if record.get("opset") else []
    said += [f"as {record['as']}"] if record.get("as") else []
    said += ["with its code"] if record.get("code") is True else []
    return ", ".join(said)


def files(record: Record) -> str:
    """How many files, and their bytes."""
    sizes = record.get("files")
    if not isinstance(sizes, Mapping) or not sizes:
        return ""
    return f"{size(sum(sizes.values()))} in {len(sizes)} file{'s' * (len(sizes) > 1)}"


def difference(record: Record) -> str:
    """The largest difference from PyTorch, beside what is allowed, and where it was."""
    found = record.get("parity") or {}
    if not isinstance(found.get("max_difference"), float):
        return ""
    allowed = f" (allowed {found['tolerance']:.1g})" if found.get("tolerance") else ""
    where = f", at {found['worst']}" if found.get("worst") else ""
    among = f", the worst of {found['points']} inputs" if found.get("points") else ""
    return f"{found['max_difference']:.1e} of the largest logit{allowed}{where}{among}"


def answers(record: Record) -> str:
    """How many of the tokens or answers that the graph chose are PyTorch's."""
    found = record.get("parity") or {}
    for name, what in (("greedy_tokens", "greedy tokens"), ("same_answers", "answers")):
        if found.get(name):
            equal, total = found[name]
            return f"{equal} of {total} {what} are PyTorch's"
    return ""


def perplexity(record: Record) -> str:
    """What fewer bits cost."""
    found = record.get("perplexity_change")
    if not found:
        return ""
    of = found["data"]
    text = " ".join(str(value) for value in of.values()) if isinstance(of, Mapping) else str(of)
    said = f"{found['before']:.2f} before, {found['after']:.2f} after, on {found['tokens']:,} tokens of {text}"
    windows = [f"windows of {found['length']} tokens"] if "length" in found else []
    return ", ".join([said, *windows, *([f"stride {found['stride']}"] if "stride" in found else [])])


def rows(record: Record) -> list[tuple[str, str]]:
    """(what, value) for all that a record says but for its files; nothing for what it does not say."""
    known = [
        ("written as", kind(record)),
        ("difference from PyTorch", difference(record)),
        ("choices", answers(record)),
        ("perplexity", perplexity(record)),
        *(("note", str(note)) for note in record.get("notes", [])),
        *((name.replace("_", " "), said(value)) for name, value in record.items() if name not in SHOWN),
    ]
    return [(name, value) for name, value in known if value]


def said(value: object) -> str:
    """A value in words: mappings as pairs, small numbers short."""
    if isinstance(value, Mapping):
        return "; ".join(f"{str(key).replace('_', ' ')} {said(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
