"""The loop: batches in, gradients, steps, a look at held-out text now and then, and the best weights at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.progress import Advance, Progress
from prune.recovery import optimize, state
from prune.recovery.engine import Engine
from prune.recovery.objective import PARTS, Batch, Objective, Totals, totals
from prune.recovery.settings import Training
from prune.recovery.state import Facts
from prune.recovery.teacher import Signal
from prune.recovery.windows import Windows, on, share, step_batches, tokens

Ask = Callable[[Batch], Signal]  # what a teacher says of a batch
LOGGED = 100  # points of a loss curve


@dataclass
class Job:
    """What is trained, on what, and where a stopped run left its state (None: nowhere)."""

    objective: Objective
    wrapped: nn.Module
    ask: Ask
    rows: Windows
    held_out: Windows
    training: Training
    engine: Engine
    optimizer: torch.optim.Optimizer
    rate: float
    folder: Path | None
    progress: Progress


def fit(job: Job) -> tuple[Facts, dict[str, Tensor]]:
    """Trains in place; gives what is known of it, and the best weights by held-out loss (none if the start is best).

    PruneError when the loss or the gradient is not a number; the state before that step is kept.
    """
    facts, best = _resumed(job)
    with job.progress.track("training", job.training.steps) as advance:
        advance(facts.step)
        heard = _Heard()
        while facts.step < job.training.steps and not _given_up(job, facts):
            began = time.perf_counter()
            parts = _step(job, facts, best)
            heard.add(parts)
            facts.seconds += time.perf_counter() - began
            _note(job, facts, heard)
            if facts.step % job.training.interval == 0 or facts.step == job.training.steps:
                best = _look(job, facts, best)
            _tell(advance, facts)
    return facts, best


def _resumed(job: Job) -> tuple[Facts, dict[str, Tensor]]:
    """Where a stopped run was; or the start, measured."""
    found = state.load(job.folder) if job.folder else None
    if found is None:
        before = held_out_loss(job.wrapped, job.held_out, job.training, job.engine)
        curve = [{"step": 0, "loss": None, "held_out": before}]
        return Facts(before=before, best=before, curve=curve), {}
    facts, tensors = found
    state.restore(job.objective, tensors["weights"])
    state.restore_moments(job.objective, job.optimizer, tensors["moments"])
    job.progress.say(f"going on after step {facts.step}")
    return facts, tensors["best"]


def _given_up(job: Job, facts: Facts) -> bool:
    return job.training.patience is not None and facts.unbeaten >= job.training.patience


def _step(job: Job, facts: Facts, best: dict[str, Tensor]) -> Tensor:
    """One step; the loss's parts, (3,), means over the tokens of the step."""
    training, engine = job.training, job.engine
    batches = step_batches(
        job.rows, facts.step, batch_size=training.batch_size, accumulate=training.accumulate, seed=training.seed
    )
    whole = totals(batches)
    parts = torch.zeros(len(PARTS) + 1, device=engine.device)
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with nullcontext() if last else engine.apart(job.wrapped):
            parts += _gradients(job, batch, whole)
    parts = engine.added_up(parts)
    parameters = list(state.trained(job.objective).values())
    norm = optimize.clip(parameters, training.optimizer.clip)
    if not (bool(parts.isfinite().all()) and bool(norm.isfinite())):
        _refuse_nonfinite(job, facts, best)
    part = optimize.share(facts.step, training.steps, training.optimizer)
    optimize.set_rate(job.optimizer, job.rate * part)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    facts.step += 1
    facts.tokens += tokens(batches)
    return parts.cpu()


def _gradients(job: Job, batch: Batch, whole: Totals) -> Tensor:
    """Adds one batch's gradients; gives the parts of the loss and the loss, (4,)."""
    engine = job.engine
    mine = on(share(batch, engine.rank, engine.processes), engine.device)
    with engine.precision():
        signal = job.ask(mine)
        # The mean over processes is taken of gradients, and the loss is a sum over them.
        loss, parts = job.wrapped(mine, signal, whole, float(engine.processes))
    loss.backward()
    return torch.cat([parts, loss.detach()[None] / engine.processes])


def _refuse_nonfinite(job: Job, facts: Facts, best: dict[str, Tensor]) -> None:
    kept = ""
    if job.folder:
        _save(job, facts, best)
        kept = f"; the weights before it are kept in {state.latest(job.folder)}"
    raise PruneError(
        f"the loss or its gradient is not a number at step {facts.step + 1} of {job.training.steps}; "
        f"take a lower learning rate than {job.rate:.2g}{kept}",
        where="optimizer",
    )


class _Heard:
    """The loss since it was last noted."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(PARTS) + 1)
        self.count = 0

    def add(self, parts: Tensor) -> None:
        self.sums += parts
        self.count += 1

    def taken(self) -> list[float]:
        found: list[float] = (self.sums / max(self.count, 1)).tolist()
        self.sums, self.count = torch.zeros_like(self.sums), 0
        return found


def _note(job: Job, facts: Facts, heard: _Heard) -> None:
    """Puts the loss on the curve, at every hundredth of the run and where held-out text is looked at."""
    every = max(job.training.steps // LOGGED, 1)
    looked = facts.step % job.training.interval == 0 or facts.step == job.training.steps
    if facts.step % every and not looked:
        return
    *parts, loss = heard.taken()
    facts.parts = {name: value for name, value in zip(PARTS, parts, strict=True) if value}
    text = {"text": facts.parts["hard"]} if "hard" in facts.parts else {}  # what held-out text is measured by too
    facts.curve.append({"step": facts.step, "loss": loss, "held_out": None} | text)


def _look(job: Job, facts: Facts, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Measures held-out text; the best weights so far."""
    loss = held_out_loss(job.wrapped, job.held_out, job.training, job.engine)
    facts.curve[-1]["held_out"] = loss
    facts.unbeaten += 1
    if loss < facts.best:
        facts.best, facts.best_step, facts.unbeaten = loss, facts.step, 0
        best = state.snapshot(job.objective)
    if job.folder:
        _save(job, facts, best)
    return best


def _save(job: Job, facts: Facts, best: dict[str, Tensor]) -> None:
    assert job.folder
    tensors = {
        "weights": state.snapshot(job.objective),
        "moments": state.moments(job.objective, job.optimizer),
        "best": best,
    }
    if job.engine.first:
        state.save(job.folder, facts, tensors)


def held_out_loss(
    wrapped: nn.Module, rows: Windows, training: Training, engine: Engine, *, alone: bool = False
) -> float:
    """Cross-entropy in nats per predicted token; `alone` when the other processes do not take part."""
    rank, processes = (0, 1) if alone else (engine.rank, engine.processes)
    size = training.batch_size
    batches = [rows.batch(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    whole = totals(batches)
    found = torch.zeros((), device=engine.device, dtype=torch.float64)
    with torch.no_grad(), engine.precision():
        for batch in batches:
            found += wrapped(on(share(batch, rank, processes), engine.device), None, whole)[0]
    return float(found if alone else engine.added_up(found))


def _tell(advance: Advance, facts: Facts) -> None:
    last = next((point for point in reversed(facts.curve) if point["loss"] is not None), None)
    heard = f"loss {last['loss']:.3f}, " if last else ""
    advance(1, f"{heard}{facts.tokens / max(facts.seconds, 1e-9):,.0f} tokens/s")
