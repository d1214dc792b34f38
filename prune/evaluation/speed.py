"""Speed of several models in one alternated run: the latency of a prompt, and tokens per second after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prune.evaluation.runners import PYTORCH, Runner

LEAST, MOST = 5, 200  # rounds
Entry = dict[str, Any]  # a value for each model by its name, `spread`, `ratio` of the last to the first, and `of`


class Setting(NamedTuple):
    """`batch` prompts of `length` tokens, `new` tokens after each."""

    batch: int = 1
    length: int = 256
    new: int = 32


def settings(batch: int | Sequence[int], length: int | Sequence[int], new: int) -> list[Setting]:
    """Every batch size with every length."""
    lists = ([value] if isinstance(value, int) else value for value in (batch, length))
    batches, lengths = (sorted(set(values)) for values in lists)
    return [Setting(size, tokens, new) for size in batches for tokens in lengths]


def distinct(wanted: Sequence[Setting], runners: Sequence[Runner]) -> list[Setting]:
    """Settings cut to what every model has positions for, each once."""
    return list(dict.fromkeys(within(setting, runners) for setting in wanted))


def within(setting: Setting, runners: Sequence[Runner]) -> Setting:
    """A setting cut to what every model has positions for; without new tokens where one of them has no cache."""
    limit = min(runner.limit for runner in runners)
    new = min(setting.new, max(limit // 2, 1)) if all(runner.decode for runner in runners) else 0
    return setting._replace(length=max(min(setting.length, limit - new), 1), new=new)


@torch.inference_mode()
def speed(
    runners: Mapping[str, Sequence[Runner]], chosen: Sequence[Setting], *, seconds: float = 4.0, seed: int = 0
) -> dict[str, Entry]:
    """How fast models are, by name, each in one or more runtimes: quantity -> Entry.

    `prefill` is the median seconds of a prompt's first pass, `decode` the median tokens per second after it, over all
    prompts of a batch. All models and runtimes take turns, on the same random tokens, for about `seconds` a setting
    after a warm-up, so that whatever else the machine does falls on all of them. A further setting or runtime is named
    in its quantity: "decode, batch 8", "prefill, ONNX Runtime". `spread` are the quartiles of the ratio over the
    rounds; of a single model, of the value itself.
    """
    found: dict[str, Entry] = {}
    everyone = [(name, runner) for name, own in runners.items() for runner in own]
    for setting in chosen:
        taken = _rounds([runner for _, runner in everyone], setting, seconds, seed)
        for runtime in dict.fromkeys(runner.runtime for _, runner in everyone):
            pairs = zip(everyone, taken, strict=True)
            own = {name: times for (name, runner), times in pairs if runner.runtime == runtime}
            said = suffix(setting, chosen, runtime)
            of = _of(setting, runtime, len(taken[0][0]), everyone[0][1])
            found[f"prefill{said}"] = entry({name: times[0] for name, times in own.items()}, of)
            if setting.new:
                count = setting.batch * setting.new
                rates = {name: [count / seconds for seconds in times[1]] for name, times in own.items()}
                found[f"decode{said}"] = entry(rates, {**of, "new": setting.new})
    return found


def suffix(setting: Setting, among: Sequence[Setting], runtime: str) -> str:
    """What tells a setting and runtime from the first one, to stand after a quantity's name."""
    first = among[0]
    parts = [
        f"batch {setting.batch}" if len({other.batch for other in among}) > 1 and setting != first else "",
        f"length {setting.length}" if len({other.length for other in among}) > 1 and setting != first else "",
        runtime if runtime != PYTORCH else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def entry(values: Mapping[str, Sequence[float]], of: Mapping[str, Any]) -> Entry:
    """Medians by name, the median ratio of the last to the first round by round, and its quartiles.

    Of a single model the quartiles are the value's own; what was measured once has none.
    """
    first, *_, last = [*values, *values]
    compared = len(values) > 1
    pairs = zip(values[first], values[last], strict=True)
    spread = [after / before for before, after in pairs] if compared else list(values[first])
    return {
        **{name: statistics.median(own) for name, own in values.items()},
        **({"ratio": statistics.median(spread)} if compared else {}),
        **({"spread": statistics.quantiles(spread, n=4)[::2]} if len(spread) > 1 else {}),
        "of": dict(of),
    }


def _of(setting: Setting, runtime: str, rounds: int, runner: Runner) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "batch": setting.batch,
        "length": setting.length,
        "rounds": rounds,
        "device": str(runner.device) if runtime == PYTORCH else "cpu",
        "threads": torch.get_num_threads(),
    }


def _rounds(
    runners: Sequence[Runner], setting: Setting, seconds: float, seed: int
) -> list[tuple[list[float], list[float]]]:
    """Seconds of each round, for each runner: of the prompt, and of all tokens after it."""
    ids = tokens(setting, min((runner.vocabulary for runner in runners if runner.vocabulary), default=1), seed)
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in runners]
    for runner in runners:
        once(runner, ids, setting)  # warm-up
    start, rounds = time.perf_counter(), 0
    while rounds < LEAST or (rounds < MOST and time.perf_counter() - start < seconds):
        for runner, own in zip(runners, taken, strict=True):
            for times, value in zip(own, once(runner, ids, setting), strict=True):
                times.append(value)
        rounds += 1
    return taken


def tokens(setting: Setting, vocabulary: int, seed: int) -> Tensor:
    """Random ids (batch, length + new)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (setting.batch, setting.length + setting.new), generator=generator)


def once(runner: Runner, ids: Tensor, setting: Setting) -> tuple[float, float]:
    """Seconds of the prompt and of the tokens after it, each waited for to its end."""
    ids = ids.to(runner.device)
    runner.settle()
    start = time.perf_counter()
    state = runner.prefill(ids[:, : setting.length])
    runner.settle()
    middle = time.perf_counter()
    for place in range(setting.length, setting.length + setting.new):
        assert runner.decode
        state = runner.decode(state, ids[:, place : place + 1])
    runner.settle()
    return middle - start, time.perf_counter() - middle
