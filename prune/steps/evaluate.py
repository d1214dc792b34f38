"""`evaluate`: measure the model as it now is beside the recipe's original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import Field

from prune import forecast, rehearsal
from prune.errors import PruneError
from prune.evaluation import tasks as scorers
from prune.evaluation.benchmark import Speed, graphs_in
from prune.evaluation.evaluate import evaluate as measure
from prune.evaluation.evaluate import same_words
from prune.evaluation.tasks import Kmmlu
from prune.exports.export import write
from prune.exports.job import Job
from prune.measure import flops_per_token
from prune.run import Run
from prune.steps._common import Count, Positive, place

QUESTION = 400  # tokens of a question, more or less, for the forecast
TOLD = ("perplexity", "accuracy", "tasks", "generations")  # what is the same on every run


def evaluate(
    run: Run,
    *,
    perplexity: str | None = None,
    accuracy: str | None = None,
    label: str | None = None,
    length: Annotated[int, Field(ge=2)] = 256,
    stride: Positive | None = None,
    samples: Positive | None = None,
    field: str | None = None,
    split: str | None = None,
    documents: Literal["joined", "separate"] = "joined",
    speed: bool | Speed = False,
    tasks: str | list[str] | None = None,
    shots: Count | list[Count] | None = None,
    limit: Positive | None = None,
    kmmlu: Kmmlu | None = None,
    generate: list[str] = [],  # noqa: B006 - recipes bind it; it is never changed
    tokens: Positive = 48,
    batch_size: Positive = 8,
) -> None:
    """Measure the model as it now is beside the recipe's original: size, perplexity, accuracy, speed, tasks, texts.

    perplexity: text to measure on: a builtin (its held-out part), a local file, `wikitext`, `c4`, any Hub dataset.
    accuracy: labelled examples, for classifiers of texts, words and images and for pairs of texts; text, for a model of
        masked words. A local file or a Hub dataset.
    label: the column that holds the class, the tags or the target text; `field` holds the input.
    length: tokens in a window, and the most of an example.
    stride: new tokens in each window, after context that is not counted; all but one when left out.
    samples: at most this many windows; all of them when left out (256 of `c4`).
    field: the text field of a .jsonl, .parquet, .csv or Hub dataset.
    split: the split of a Hub dataset.
    documents: `joined`, the end token between them and context across it; `separate`, each with windows of its own.
    speed: time both models in turn: the latency of a prompt, tokens per second after it, and peak memory. Options:
        `batch` and `length` (numbers or lists), `new` (tokens after a prompt), `seconds` (for each), `memory` (false
        leaves it out). An ONNX export by an earlier step is timed too, beside the original's.
    tasks: `kmmlu`, and any task of lm-eval by name (extra `eval`).
    shots: solved questions before each, or a list of such numbers; 5 for `kmmlu` and what others say when left out.
    limit: at most this many questions of each task or subject.
    kmmlu: which questions: `data` (a folder of CSV files, or a Hub dataset), `subjects` (names, or `found` for those
        that the folder holds; all 45 when left out), `scorer` (own, lm-eval).
    generate: prompts that both models continue, for a person to read.
    tokens: at most this many after each prompt.
    batch_size: questions that go through a model at once.
    """
    before, after = run.original, run.model
    run.record["parameters"] = [before.tensors.parameters, after.tensors.parameters]
    run.record["bytes"] = [before.tensors.bytes, after.tensors.bytes]
    run.record["flops"] = [flops_per_token(before), flops_per_token(after)]
    wanted = scorers.listed(tasks, kmmlu)
    if run.dry:
        if accuracy is not None:
            rehearsal.accuracy(before, accuracy, length=length, field=field, split=split, label=label)
        if perplexity is not None:
            numbers: dict[str, Any] = {"length": length, "stride": stride, "samples": samples}
            rehearsal.evaluation(before, perplexity, **numbers, field=field, split=split)
        if (perplexity or accuracy) and before.weights:
            same_words({"before": before, "after": after})
        if wanted:
            scorers.check(before, wanted, shots=shots, questions=kmmlu)
        if (wanted or generate) and before.weights:
            before.tokenizer()
        windows = (samples or 256) * length if perplexity or accuracy else 0  # of the whole text not more is known
        needs = [forecast.walking(before, tokens=windows, length=length, device=run.device, walks=2)]
        if speed:
            needs.append(forecast.whole(before, copies=2, tokens=0, device=run.device))
        if wanted or generate:
            questions = scorers.asked(wanted, shots=shots, limit=limit, questions=kmmlu)
            read = 2 * QUESTION * questions + 2 * len(generate) * tokens
            needs.append(forecast.whole(before, copies=1, tokens=read, device=run.device))
        run.record["needs"] = forecast.together(*needs)
        return
    with _graphs(run, wanted=bool(speed)) as graphs:
        found = measure(
            {"before": before, "after": after},
            perplexity=perplexity,
            accuracy=accuracy,
            label=label,
            length=length,
            stride=stride,
            samples=samples,
            field=field,
            split=split,
            documents=documents,
            speed=speed,
            graphs=graphs,
            tasks=tasks,
            shots=shots,
            limit=limit,
            kmmlu=kmmlu,
            generate=generate,
            tokens=tokens,
            batch_size=batch_size,
            seed=run.seed,
            **place(run),
        )
    run.record.update({name: found[name] for name in TOLD if name in found})
    run.warnings += found.get("warnings", [])
    if "speed" in found:
        first = found["speed"]["prefill"]
        run.timings.update(
            speed=found["speed"],
            latency_seconds=[first["before"], first["after"]],
            latency_ratio=first["ratio"],
            latency_of=first["of"],
        )


@contextmanager
def _graphs(run: Run, *, wanted: bool) -> Iterator[dict[str, list[Path]]]:
    """The model as earlier steps exported it to ONNX, and the original exported in float32 for the comparison."""
    after = [path for folder in run.exports for path in graphs_in(folder)] if wanted else []
    if not after:
        yield {}
        return
    with TemporaryDirectory() as folder:
        before = Path(folder) / "onnx"
        try:
            write(Job(run.original, before, run.progress, None, run.seed), format="onnx")
        except PruneError as error:
            run.warnings.append(f"the original is not timed in ONNX Runtime: {error.message}")
        yield {"before": graphs_in(before), "after": after}


evaluate.data = ("perplexity", "accuracy")  # type: ignore[attr-defined]  # options that name text
evaluate.prints = {"kmmlu": scorers.fingerprint, "tasks": scorers.scorer}  # type: ignore[attr-defined]
evaluate.calibrated = False  # type: ignore[attr-defined]  # never looks at the calibration data
