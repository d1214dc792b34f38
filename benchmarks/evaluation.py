"""One subject of KMMLU, 5-shot: what its questions share computed once, or not, and lm-eval where it is installed.

    python benchmarks/evaluation.py [--model bundled] [--kmmlu FOLDER --subject NAME] [--questions 200] [--threads 2]
                                    [--rounds 3] [--positions 8192] [--alone]

Without a folder the questions are made up (tests/questions.py). `--positions` lets the model take that many tokens, so
that no question is cut on its left; without it the model's own limit stands. All ways take turns on the same questions,
and medians are given as a Markdown table, with the processor's own seconds, which other work on the machine does not
lengthen; the largest difference of log-probabilities stands below.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import prune
from prune.evaluation import harness
from prune.evaluation.choices import answer, encode, longest
from prune.evaluation.kmmlu import Subject, questions, read
from tests.questions import write

SHOTS = 5


def subject(folder: str | None, name: str, count: int) -> Subject:
    if folder is not None:
        return read(folder, subjects=[name], shots=SHOTS, limit=count)[0]
    with TemporaryDirectory() as made:
        return read(write(Path(made), [name], count=count), subjects=[name], shots=SHOTS)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--kmmlu")
    parser.add_argument("--subject", default="Accounting")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--positions", type=int)
    parser.add_argument("--alone", action="store_true", help="only our scorer as it is used")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = prune.open(asked.model)
    module, tokenizer = prune.load(model, dtype=torch.float32).eval(), model.tokenizer()
    if asked.positions:
        module.config.max_position_embeddings = asked.positions
    given = subject(asked.kmmlu, asked.subject, asked.questions)
    found = questions(given, SHOTS)

    def own(*, share: bool) -> list[float]:
        return [value for one in answer(module, tokenizer, found, share=share) for value in one.logprobs]

    def theirs() -> list[float]:
        said = harness.answered(module, tokenizer, [given], shots=SHOTS)[given.name]
        return [value for one in said for value in one["logprobs"]]

    ways: dict[str, Callable[[], list[float]]] = {
        "shared prefix computed once": lambda: own(share=True),
        "every question whole": lambda: own(share=False),
    }
    if asked.alone:
        del ways["every question whole"]
    elif importlib.util.find_spec("lm_eval") is not None:
        ways["lm-eval"] = theirs
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    values: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            values[name] = way()
            taken[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    tokens = [len(pair[0].context) for one in found if (pair := encode(tokenizer, one.context, one.choices))]
    limit = longest(module.config, tokenizer)
    print(f"{asked.model}, {given.name}, {len(found)} questions, {SHOTS}-shot, {asked.threads} threads, torch", end=" ")
    print(f"{torch.__version__}; {statistics.median(tokens):.0f} tokens a question (median), {limit} fit\n")
    print("| way | seconds | of the processor |\n| --- | --- | --- |")
    for name, own_times in taken.items():
        wall, busy = (statistics.median(values) for values in zip(*own_times, strict=True))
        print(f"| {name} | {wall:.1f} | {busy:.1f} |")
    first, *others = values.values()
    if not others:
        return
    worst = max(abs(a - b) for other in others for a, b in zip(first, other, strict=True))
    print(f"\nlargest difference of log-probabilities: {worst:.1e} nats")


if __name__ == "__main__":
    main()
