"""Which runtime will load a model, known from its config and shapes: the rules of runtimes.toml, read in order."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prune.errors import PruneError
from prune.exports.checkpoints.deci import deci
from prune.exports.decoder import decodes
from prune.exports.export import reason
from prune.files import read_json
from prune.model.model import Model

RULES = Path(__file__).with_name("runtimes.toml")
POOLED = ("BertForSequenceClassification", "BertForTokenClassification", "RobertaForSequenceClassification")

# The ORTModel classes of optimum-onnx that load a graph of one call, by the ends of the architectures' names.
ORT_TASKS = (
    "ForMaskedLM",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForImageClassification",
)


def table(model: Model, exported: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """One row for each runtime: `runtime`, `verdict` ("loads", "loads with", "will not"), `why`, and `source`.

    `exported` are the options of the exports that stand beside the model, each with its `folder`: what they were
    written for loads from there.
    """
    facts = _facts(model)
    rows: dict[str, dict[str, str]] = {}
    for rule in _rules():
        found = None if rule["runtime"] in rows else _verdict(rule, model, facts, exported)
        if found is not None:
            rows[rule["runtime"]] = found
    return list(rows.values())


@cache
def _rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = tomllib.loads(RULES.read_text(encoding="utf-8"))["rule"]
    return rules


def _verdict(
    rule: dict[str, Any], model: Model, facts: set[str], exported: Sequence[Mapping[str, Any]]
) -> dict[str, str] | None:
    """A rule's row, or None where it is not about this model."""
    kind = model.config.model_type
    if not set(rule["when"]) <= facts or kind in rule.get("except", ()) or kind not in rule.get("types", (kind,)):
        return None
    refused = reason(model, rule["check"]) if "check" in rule else None
    row = {name: rule[name] for name in ("runtime", "verdict", "why", "source")}
    if refused:
        return {**row, "verdict": "will not", "why": refused}
    if folders := _folders(rule, exported):
        return {**row, "verdict": "loads", "why": " ".join(filter(None, [", ".join(folders), rule["then"]]))}
    return None if rule["verdict"] == "goes on" else row


def _folders(rule: dict[str, Any], exported: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where exports that the rule asks for were written."""
    asked = rule.get("export", {}).items()
    return [f"{one['folder']}/" for one in exported if asked and asked <= one.items()]


def _facts(model: Model) -> set[str]:
    """The words of `when` that hold for a model.

    layers differ: it has a type of its own, which prune teaches transformers.
    decodes: a causal language model.
    narrow attention: the query heads together are not as wide as the model.
    head width is not hidden / heads: what divides one by the other gets the width of a head wrong.
    grouped heads: fewer key-value heads than query heads.
    deci: Deci's words can state it.
    pools in vLLM: an encoder with a head that vLLM serves as a pooling model.
    has an ORTModel class: optimum-onnx has one for its head.
    written by transformers 5: its tokenizer names a class that transformers 4 has not.
    """
    numbers = model.numbers
    heads, width = numbers["heads"], numbers["width"]
    holds = {
        "layers differ": not model.uniform,
        "decodes": decodes(model.architecture),
        "narrow attention": heads * numbers["head_dim"] != width,
        "head width is not hidden / heads": width // max(heads, 1) != numbers["head_dim"],
        "grouped heads": numbers["kv_heads"] != heads,
        "deci": not model.uniform and _states(model),
        "pools in vLLM": model.architecture.__name__ in POOLED,
        "has an ORTModel class": model.architecture.__name__.endswith(ORT_TASKS),
        "written by transformers 5": _tokenizer_class(model) == "TokenizersBackend",
    }
    return {name for name, true in holds.items() if true}


def _states(model: Model) -> bool:
    try:
        deci(model)
    except PruneError:
        return False
    return True


def _tokenizer_class(model: Model) -> object:
    path = model.files.get("tokenizer_config.json")
    return read_json(path).get("tokenizer_class") if path else None
