"""The front matter of a model card, as the Hub reads it. https://huggingface.co/docs/hub/model-cards"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prune.data import HUB_ID
from prune.report import summary
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
PIPELINES = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
}
PERPLEXITY = "perplexity"


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
    for ending, pipeline in PIPELINES.items():
        if any(name.endswith(ending) for name in architectures):
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
    """What was measured of the result itself, in the Hub's words."""
    change = next((c for c in summary.changes(steps) if c.name == PERPLEXITY), None)
    if change and change.after is not None:
        said = [step["record"][PERPLEXITY] for step in steps if step["record"].get(PERPLEXITY)][-1]
        yield _result(task, summary.flat(said.get("data", "text")), PERPLEXITY, change.after)
    numbers = [number for number, step in enumerate(steps) if step["record"].get("tasks")]
    if numbers and summary.changed_after(numbers[-1], steps) is None:
        for name, scores in (steps[numbers[-1]]["record"]["tasks"].get("after") or {}).items():
            kept = {"micro": "accuracy", "macro": "macro accuracy"} if str(name).startswith("kmmlu") else {}
            for metric, value in scores.items():
                if isinstance(value, float) and (not kept or metric in kept) and "stderr" not in metric:
                    yield _result(task, str(name), kept.get(metric, str(metric)), value)


def _result(task: str, data: str, metric: str, value: float) -> dict[str, Any]:
    slug = "-".join("".join(c if c.isalnum() or c in "-_./" else " " for c in data).split()) or "text"
    measured = {"type": metric.replace(" ", "_"), "name": metric, "value": round(value, 4)}
    return {"task": {"type": task}, "dataset": {"name": data, "type": slug}, "metrics": [measured]}
