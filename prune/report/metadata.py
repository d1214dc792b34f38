"""The front matter of a model card, as the Hub reads it. https://huggingface.co/docs/hub/model-cards"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prune.data import HUB_ID
from prune.report import course, scored, summary
from prune.report.reproduce import kind
from prune.report.summary import Records

CHANGING = {  # recipe words after which the weights are others, and what the model is then called
    "remove": "pruned",
    "merge": "merged",
    "upscale": "upscaled",
    "distill": "distilled",
    "train": "trained",
}
TAGS = {"merge": "merge", "distill": "distillation", "upscale": "upscaled"}
FEW_BITS = {"int8", "int4", "quantize", "awq", "gptq"}  # in an export's options; so do q4 to q8 begin llama.cpp's types
PERPLEXITY, ACCURACY = "perplexity", "accuracy"
AVERAGES = {"micro": ACCURACY, "macro": "macro accuracy"}  # of KMMLU


def metadata(
    manifest: Mapping[str, Any], *, base_model: str | None, licence: str | None, architectures: Sequence[str] = ()
) -> dict[str, Any]:
    """Base model and relation, licence, tags, pipeline, datasets and results; nothing for what is not known.

    The Hub knows four relations: `merge` and `quantized` are what they say, and what is pruned or trained is a
    `finetune`. Models and data are named only where they are on the Hub.
    """
    steps = manifest.get("steps", [])
    found: dict[str, Any] = {"library_name": "transformers", "tags": tags(steps)}
    bases = _bases(steps, base_model)
    if bases:
        found["base_model"] = bases[0] if len(bases) == 1 else bases
        found["base_model_relation"] = relation(steps)
    if licence:
        found["license"] = licence
    _, pipeline = kind(architectures) or (None, None)
    if pipeline:
        found["pipeline_tag"] = pipeline
    if datasets := sorted(set(_datasets(steps))):
        found["datasets"] = datasets
    if results := list(_results(steps, found.get("pipeline_tag", "text-generation"))):
        name = str(manifest["model"]["source"]).rstrip("/").rsplit("/", 1)[-1]
        found["model-index"] = [{"name": f"{name}-{did(steps)}", "results": results}]
    return found


def tags(steps: Records) -> list[str]:
    words = {step["word"] for step in steps}
    found = ["pruned", "structured-pruning"] if "remove" in words else []
    return found + [tag for word, tag in TAGS.items() if word in words]


def did(steps: Records) -> str:
    """What was done to the model, in one word."""
    words = {step["word"] for step in steps}
    return next((said for word, said in CHANGING.items() if word in words), "exported")


def relation(steps: Records) -> str:
    """`merge`, `quantized` when nothing but smaller numbers were written, else `finetune`."""
    words = {step["word"] for step in steps}
    if "merge" in words:
        return "merge"
    exported = [step["options"] for step in steps if step["word"] == "export"]
    small = any(_small(options) for options in exported)
    return "quantized" if small and not words & set(CHANGING) else "finetune"


def _small(options: Mapping[str, Any]) -> bool:
    """Whether an export's options ask for integers of few bits: q4_0, Q8_0, int8, awq."""
    said = " ".join(f"{key} {value}" for key, value in options.items() if value).lower().replace("_", " ").split()
    return any(word in FEW_BITS or word[:2] in ("q4", "q5", "q6", "q8") for word in said)


def _bases(steps: Records, base_model: str | None) -> list[str]:
    found = [base_model] if base_model else []
    for step in steps:
        inputs = (step["record"].get("merge") or {}).get("inputs") or []
        names = [str(one.get("model", "")) if isinstance(one, Mapping) else str(one) for one in inputs]
        found += [name for name in names if HUB_ID.fullmatch(name) and "/" in name and not Path(name).exists()]
    return list(dict.fromkeys(found))


def _datasets(steps: Records) -> Iterator[str]:
    """Hub ids among what the steps read: their fingerprint is the id with a revision, that of a file a hash."""
    for step in steps:
        for read in (step.get("inputs") or {}).values():
            mark = read[-1] if isinstance(read, list) and read else read
            if isinstance(mark, str) and "@" in mark and HUB_ID.fullmatch(mark.split("@")[0]):
                yield mark.split("@")[0].split(":")[0]


def _results(steps: Records, task: str) -> Iterator[dict[str, Any]]:
    """What was measured of the result itself, and on what, in the Hub's words."""
    after = {change.name: change.after for change in summary.changes(steps) if change.after is not None}
    for name, terms in ((PERPLEXITY, course.TERMS), (ACCURACY, ("task", "labels"))):
        if name in after:
            said = [step["record"][name] for step in steps if step["record"].get(name)][-1]
            args = {term: said[term] for term in terms if term in said and term != "data"}
            yield _result(task, _data(said.get("data", "text")), name, after[name], args)
    numbers = [number for number, step in enumerate(steps) if step["record"].get("tasks")]
    if numbers and summary.changed_after(numbers[-1], steps) is None:
        for name, scores in (steps[numbers[-1]]["record"]["tasks"].get("after") or {}).items():
            yield from _scores(task, str(name), scores)


def _scores(task: str, name: str, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The metrics of one task, with its shots, questions and the like."""
    own = scored.is_kmmlu(name, scores)
    data = (scored.name(name, scores), _on_hub(scores.get("data")) or "kmmlu") if own else _data(name)
    for metric, value in scores.items():
        if isinstance(value, float) and (metric in AVERAGES if own else "stderr" not in metric):
            yield _result(task, data, AVERAGES[metric] if own else str(metric), value, scored.terms(name, scores))


def _data(said: Any) -> tuple[str, str]:
    """The name of some data in words, and its id on the Hub, or the same in one word."""
    name = summary.flat(said)
    found = _on_hub(said.get("data") if isinstance(said, Mapping) else None)
    return name, found or "-".join("".join(c if c.isalnum() or c in "-_./" else " " for c in name).split()) or "text"


def _on_hub(data: Any) -> str | None:
    """The id of a dataset of the Hub, without its configuration and revision; None for what is none."""
    if not isinstance(data, str) or not HUB_ID.fullmatch(data) or "/" not in data or Path(data).exists():
        return None
    return data.split("@")[0].split(":")[0]


def _result(task: str, data: tuple[str, str], metric: str, value: float, args: Mapping[str, Any]) -> dict[str, Any]:
    name, kind = data
    measured = {"type": metric.replace(" ", "_"), "name": metric, "value": round(value, 4)}
    measured |= {"args": dict(args)} if args else {}
    return {"task": {"type": task}, "dataset": {"name": name, "type": kind}, "metrics": [measured]}
