"""Tasks by lm-eval (https://github.com/EleutherAI/lm-evaluation-harness): any it has, and KMMLU from local files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prune.errors import PruneError, need, unknown
from prune.evaluation.kmmlu import LETTERS, Subject, summary
from prune.progress import silenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAPS = 1000  # resamplings for the standard error of metrics that have no formula for it


def check(names: Sequence[str]) -> None:
    """PruneError when lm-eval is not installed, or has no task, group or tag of such a name; it takes seconds."""
    need("lm_eval", "eval", what="scoring these tasks", where="tasks")
    known = _index().all_tasks
    for name in names:
        if name not in known:
            raise _nearest(name, known)


def _nearest(name: str, known: Sequence[str]) -> PruneError:
    """Of thousands of names only the alike are told."""
    import difflib

    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    return unknown("task", name, near or ("kmmlu", "see `lm-eval ls tasks`")).at("tasks")


@cache
def _index() -> Any:
    """All that lm-eval has; its index is made from some 14,000 files."""
    with silenced(), _calm():
        from lm_eval.tasks import TaskManager

        return TaskManager()


def run(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> value, of tasks, groups and tags that lm-eval knows; a group's members stand beside it.

    `shots` solved examples before each question, or as the task says; `limit` is the most questions of each task.
    Raises PruneError for what lm-eval cannot do or have.
    """
    check(names)
    numbers: dict[str, Any] = {"num_fewshot": shots, "limit": limit, "batch_size": batch_size, "seed": seed}
    found = _evaluated(module, tokenizer, list(names), _index(), **numbers)
    counts = found.get("n-samples", {})
    return {
        name: {**_metrics(values), **({"questions": counts[name]["effective"]} if name in counts else {})}
        for name, values in found["results"].items()
    }


def kmmlu(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    *,
    shots: int = 5,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """KMMLU as `kmmlu.kmmlu` scores it, on the same questions, by lm-eval."""
    answers = answered(module, tokenizer, subjects, shots=shots, batch_size=batch_size, seed=seed)
    right = {name: [bool(own["acc"]) for own in found] for name, found in answers.items()}
    return summary(right, subjects, shots=shots)


def answered(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    *,
    shots: int,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Subject -> what lm-eval says of each question, in order: `acc`, and `logprobs` of the choices in nats."""
    need("lm_eval", "eval", what="this scorer", where="kmmlu")
    names = {_task(subject.name): subject.name for subject in subjects}
    with TemporaryDirectory() as folder:
        _write(Path(folder), subjects)
        with silenced(), _calm():
            from lm_eval.tasks import TaskManager

            tasks = TaskManager(include_path=folder, include_defaults=False)
        numbers: dict[str, Any] = {"num_fewshot": shots, "limit": None, "batch_size": batch_size, "seed": seed}
        found = _evaluated(module, tokenizer, list(names), tasks, log_samples=True, **numbers)
    return {
        name: [
            {"acc": own["acc"], "logprobs": [float(pair[0][0]) for pair in own["resps"]]}
            for own in sorted(found["samples"][task], key=lambda own: own["doc_id"])
        ]
        for task, name in names.items()
    }


def _task(subject: str) -> str:
    return "kmmlu_" + subject.lower().replace("-", "_")


def _write(folder: Path, subjects: Sequence[Subject]) -> None:
    """A task of lm-eval for each subject, in JSON, which is YAML too, with the questions beside it."""
    for subject in subjects:
        name = _task(subject.name)
        files = {"dev": subject.solved, "test": subject.asked}
        paths = {split: folder / f"{name}-{split}.jsonl" for split, rows in files.items() if rows}
        for split, path in paths.items():
            columns = ("question", "answer", *LETTERS)
            # As text: the template shows a number as the file has it.
            rows = [{column: str(row[column]) for column in columns} for row in files[split]]
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        task = _config(name, {split: str(path) for split, path in paths.items()})
        (folder / f"{name}.yaml").write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")


def _config(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    shown = "".join(f"\n{letter}. {{{{{letter}}}}}" for letter in LETTERS)
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": dict(files)},
        "test_split": "test",
        **({"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}} if "dev" in files else {}),
        "output_type": "multiple_choice",
        "doc_to_text": "{{question.strip()}}" + shown + "\n정답：",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "{{answer|int - 1}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _evaluated(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], tasks: Any, *, seed: int, **how: Any
) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` gives; what it fails with, in one line."""
    with silenced(), _calm():
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        backend = "seq2seq" if module.config.is_encoder_decoder else "causal"
        batch_size = how.pop("batch_size")
        seeds: dict[str, Any] = {"random_seed": None, "numpy_random_seed": None, "torch_random_seed": None}
        try:
            model = HFLM(pretrained=module, tokenizer=tokenizer, backend=backend, batch_size=batch_size)
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=names,
                task_manager=tasks,
                bootstrap_iters=BOOTSTRAPS,
                fewshot_random_seed=seed,
                log_samples=how.pop("log_samples", False),
                **seeds,
                **how,
            )
        except (OSError, ValueError, LookupError, RuntimeError, AssertionError, ImportError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise PruneError(f"lm-eval cannot run {', '.join(names)}: {reason}", where="tasks") from error
    assert found is not None, names  # only other processes than the first get None
    return dict(found)


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metric -> number; lm-eval names them "metric,filter", and the filter is named where it is not the plain one."""
    named = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
    return {key: float(value) for key, value in sorted(named.items()) if isinstance(value, int | float)}


@contextmanager
def _calm() -> Iterator[None]:
    """lm-eval's own remarks and bars kept off the screen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
