"""`synthesize`: grow a small pool of instructions into a varied one with answers, to calibrate and train with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from prune import forecast
from prune.measure import compute_dtype
from prune.run import Run
from prune.steps._common import Positive, Share
from prune.synthesis import seeds as sources
from prune.synthesis.languages import fingerprint as language_files
from prune.synthesis.settings import OWN_MODEL, Settings, Weight, settings
from prune.synthesis.synthesize import check, write
from prune.synthesis.writers import make

FOLDER = "synthesis"


def synthesize(
    run: Run,
    *,
    seeds: str,
    writer: str | dict[str, Any] = OWN_MODEL,
    rounds: Annotated[int, Field(ge=0)] = 4,
    operations: dict[str, Weight] = {},  # noqa: B006 - recipes bind it; it is never changed
    judge: bool = True,
    chain_of_thought: bool = False,
    similarity: Share = 0.7,
    difficulties: list[str] = [],  # noqa: B006
    diversify: dict[str, Any] | None = None,
    budget: dict[str, Any] = {},  # noqa: B006
    language: str = "auto",
    languages: list[str] = [],  # noqa: B006
    field: str | None = None,
    split: str | None = None,
    temperature: Weight = 0.7,
    instruction_tokens: Positive = 512,
    answer_tokens: Positive = 1024,
    answers: str | None = None,
) -> None:
    """Grow a small pool of instructions into a varied one with answers (Evol-Instruct), to calibrate and train with.

    The output gets `synthesis/`: data.jsonl and data.parquet in the chat format with each item's lineage,
    rejected.jsonl, and a report page. [synthesis.md](synthesis.md) describes rules, writers and languages.

    seeds: a .json, .jsonl, .yaml or .parquet file of `{skill, difficulty, instruction}`, or a Hub dataset id.
    writer: `model`, the recipe's model as the step finds it; another model by name or as `{model: ..., batch_size: 8}`;
        or an OpenAI-compatible endpoint, `{endpoint: "http://localhost:8000/v1", model: ..., at_once: 16}`.
    rounds: how often the pool is evolved.
    operations: weights of constrain, deepen, concretise, reason, complicate and breadth; those left out are not drawn.
        All weigh 1 and breadth 0.5 when none is given.
    judge: ask the writer whether an evolved instruction gains on its parent, and how hard both are.
    chain_of_thought: ask for answers that are reasoned step by step; it pays with very large writers only.
    similarity: an instruction that shares so much with one that is kept (Jaccard) is a near-duplicate.
    difficulties: the seeds' labels from low to high, where they are neither numbers nor words such as easy and hard.
    diversify: write new instructions for the emptiest cells of the grid of skill and difficulty, as in
        `{items: 100, topics: 5, subtopics: 3}`; also `skills`, `difficulties`, `kinds`, `formats`.
    budget: what stops it: `items` (tried, kept or not), `tokens`, or `money` by the writer's `prices`.
    language: whose rules and prompts are used: `auto` tells it by each text; or `en`, `ko`, or one of `languages`.
    languages: data files of further languages.
    field: the column that holds the instruction; `instruction`, `prompt` or `question` when left out.
    split: of a Hub dataset; `train` when left out.
    temperature: of instructions and answers; 0 takes the likeliest token.
    instruction_tokens: the most tokens of an instruction.
    answer_tokens: the most tokens of an answer.
    answers: a file that keeps what the writer answered for later runs too, in which it is not asked again.
    """
    found = settings(
        {
            "rounds": rounds,
            "operations": operations,
            "judge": judge,
            "chain_of_thought": chain_of_thought,
            "similarity": similarity,
            "difficulties": difficulties,
            "diversify": diversify,
            "budget": budget,
            "language": language,
            "languages": languages,
            "field": field,
            "split": split,
            "temperature": temperature,
            "instruction_tokens": instruction_tokens,
            "answer_tokens": answer_tokens,
            "answers": answers,
            "seed": run.seed,
        }
    )
    if run.dry:
        check(found, seeds)
        make.check(writer, found, own=run.model)
        if writer == OWN_MODEL:
            run.record["needs"] = forecast.whole(run.model, copies=1, tokens=0, device=run.device)
        return
    _write(run, seeds, writer, found)


def _write(run: Run, seeds: str, writer: str | dict[str, Any], found: Settings) -> None:
    dtype = compute_dtype(run.device, run.dtype)
    ready = make.writer(writer, own=run.model, device=run.device, dtype=dtype)
    folder = run.folder / FOLDER
    folder.mkdir()
    record, timings = write(folder, run.unfinished, seeds=seeds, writer=ready, settings=found, progress=run.progress)
    run.record["synthesis"] = record
    run.timings.update(timings)


synthesize.prints = {  # type: ignore[attr-defined]  # what tells the bytes behind an option
    "seeds": sources.fingerprint,
    "languages": language_files,
    "writer": make.fingerprint,
}
synthesize.calibrated = False  # type: ignore[attr-defined]
