"""One training from beginning to end: a model goes in, and one that is no worse on held-out text comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prune.errors import PruneError
from prune.model.model import Model
from prune.model.save import load
from prune.model.tensors import Tensors
from prune.model.walk import logits as walked_logits
from prune.progress import Progress
from prune.recovery import cache as caches
from prune.recovery import head, hidden, optimize, state, weights
from prune.recovery.cache import Cache
from prune.recovery.engine import Engine, engine, shard
from prune.recovery.fit import Ask, Job, fit, held_out_loss
from prune.recovery.hidden import Hidden
from prune.recovery.logits import Logits
from prune.recovery.objective import Batch, Objective, totals
from prune.recovery.settings import Training, refuse_float16
from prune.recovery.state import Facts
from prune.recovery.teacher import Signal, Teacher, ask, refuse_too_large, shared_ids
from prune.recovery.windows import Windows, windows


@dataclass(frozen=True)
class Trained:
    """The model that came out (the one that went in, where training did not help), and how it went.

    `record` has the curve, held-out losses before and after (nats per token), the best step, tokens, whether the start
    was kept, and the parts of the last loss; `timings` what differs from run to run.
    """

    model: Model
    record: dict[str, Any]
    timings: dict[str, float]


@dataclass(frozen=True)
class Loss:
    """What a student is judged by: how much its logits and its hidden states count, and how each is compared.

    `kept` are the teacher's layers that the student still has, where that is known. Without a teacher, logits are
    compared with the text alone.
    """

    shares: Mapping[str, float]
    logits: Logits = field(default_factory=Logits)
    hidden: Hidden = field(default_factory=Hidden)
    kept: Sequence[int] | None = None


def recover(
    student: Model,
    teacher: Model | None,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    loss: Loss,
    training: Training,
    cache: Cache | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains `student` on batches of windows, all of one length, and measures it on others.

    With `cache` the teacher's logits are read from disk, and taken first where they are not there. What a stopped run
    left in `folder` is gone on from. PruneError for what `check` refuses, and for a loss that is not a number.
    """
    progress = progress or Progress(quiet=True)
    check(student, teacher, loss=loss, training=training, cache=cache)
    rows, others = windows(batches), windows(held_out)
    module = load(student, dtype=torch.float32)
    head.check(module)
    weights.select(module, student, training.weights, training.seed)
    _checkpointing(module, training.checkpointing)
    pairs = pairs_of(student, teacher, loss)
    objective = _objective(module, student, teacher, loss, pairs, training.seed)
    unused = "logits" not in loss.shares or bool(student.numbers.get("routed"))
    with engine(training, unused=unused) as own:
        progress = progress if own.first else Progress(quiet=True)
        asked = _asking(student, teacher, rows, loss, training, cache, own, list(pairs.values()), progress)
        wrapped = own.wrap(objective, _layers(module, student))
        rate = training.learning_rate(student.numbers["width"])
        named = list(objective.named_parameters())
        chosen = optimize.optimizer(named, training.optimizer, rate)
        job = Job(objective, wrapped, asked, rows, others, training, own, chosen, rate, folder, progress)
        facts, best = fit(job)
        return _finished(student, job, facts, best) if own.first else Trained(student, {}, {})


def check(
    student: Model, teacher: Model | None, *, loss: Loss, training: Training, cache: Cache | None = None
) -> dict[int, int]:
    """PruneErrors that can be known from shapes; gives the layers that are compared."""
    head.refuse_others(student)
    weights.check(student, training.weights)
    refuse_float16(training)
    _refuse_nothing(loss)
    if teacher is None:
        return {}
    head.refuse_others(teacher)
    shared = shared_ids(student, teacher)
    if cache is not None:
        caches.check(cache, shared)
        if "hidden" in loss.shares:
            raise PruneError("keeps logits alone; hidden states need the teacher in memory", where="cache")
    else:
        refuse_too_large(teacher, student, training)
    return _map(student, teacher, loss)


def _refuse_nothing(loss: Loss) -> None:
    """PruneError for a loss that compares nothing."""
    if not loss.shares:
        raise PruneError("compares nothing; choices: logits, hidden, or both", where="loss")
    if "hidden" in loss.shares and loss.hidden.layers is not None and not loss.hidden.layers:
        raise PruneError("layers compares nothing; name a layer or leave it out", where="hidden")


def _map(student: Model, teacher: Model, loss: Loss) -> dict[int, int]:
    if "hidden" not in loss.shares:
        return {}
    counts = (student.numbers["layers"], teacher.numbers["layers"])
    return hidden.layer_map(*counts, given=loss.hidden.layers, kept=loss.kept)


def pairs_of(student: Model, teacher: Model | None, loss: Loss) -> dict[str, str]:
    """Student's layer path -> the teacher's that it is compared with."""
    found = {} if teacher is None else _map(student, teacher, loss)
    return {student.layer(own): teacher.layer(other) for own, other in found.items() if teacher}


def _objective(
    module: PreTrainedModel, student: Model, teacher: Model | None, loss: Loss, pairs: dict[str, str], seed: int
) -> Objective:
    widths = student.numbers["width"], (teacher or student).numbers["width"]
    projections = hidden.projections(len(pairs), *widths, seed)
    return Objective(
        module,
        logits=loss.logits,
        distance=loss.hidden.distance,
        shares=dict(loss.shares),
        pairs=list(pairs.items()),
        projections=projections,
    )


def _checkpointing(module: PreTrainedModel, wanted: bool) -> None:
    """Layers recompute their activations where it is wanted. They alone are in training mode: nothing drops out."""
    if wanted:
        module.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True


def _layers(module: nn.Module, model: Model) -> list[nn.Module]:
    return [module.get_submodule(model.layer(layer)) for layer in range(model.numbers["layers"])]


def _asking(
    student: Model,
    teacher: Model | None,
    rows: Windows,
    loss: Loss,
    training: Training,
    cache: Cache | None,
    own: Engine,
    paths: list[str],
    progress: Progress,
) -> Ask:
    """The function that says what the teacher thinks of a batch."""
    if teacher is None:
        return lambda _: Signal()
    shared = shared_ids(student, teacher)
    dtype = training.autocast or torch.float32
    if cache is not None:
        options: dict[str, Any] = {
            "temperature": loss.logits.temperature,
            "shared": shared,
            "device": own.device.type,
            "dtype": dtype,
            "batch_size": training.batch_size,
        }
        kept = caches.take(teacher, rows, cache, **options, first=own.first, progress=progress)
        return lambda batch: caches.ask(kept, batch)
    # Spread over processes, it goes to each device a layer at a time.
    module = load(teacher, device="cpu" if own.sharded else str(own.device), dtype=dtype)
    head.check(module)
    looked_at = Teacher(module, shared=shared, paths=sorted(set(paths)), logits="logits" in loss.shares)
    if own.sharded:
        shard(looked_at, _layers(module, teacher))
    return lambda batch: ask(looked_at, batch)


def _finished(student: Model, job: Job, facts: Facts, best: dict[str, Tensor]) -> Trained:
    """The best weights as a model, unless, in the type they are stored in, they are no better than the start."""
    after, model = facts.before, student
    if best:
        small = _whole(student, job, best)
        rounded(small.student, student)
        out = as_model(student, small.student)
        found = _walked_loss(out, job) if job.engine.sharded else _loss_alone(small, job)
        if found < facts.before:
            after, model = found, out
    record = {
        "curve": facts.curve,
        "before": facts.before,
        "after": after,
        "best_step": facts.best_step if model is not student else 0,
        "steps": facts.step,
        "tokens": facts.tokens,
        "kept_start": model is student,
        "parts": facts.parts,
    }
    return Trained(model, record, {"tokens_per_second": facts.tokens / max(facts.seconds, 1e-9)})


def _loss_alone(objective: Objective, job: Job) -> float:
    return held_out_loss(objective, job.held_out, job.training, job.engine, alone=True)


def _walked_loss(model: Model, job: Job) -> float:
    """What `held_out_loss` gives, of a model of which a device holds a layer at a time: its shards lie there still."""
    own, rows = job.engine, job.held_out
    batches = [rows.batch([row]) for row in range(len(rows))]  # one: logits are whole here
    found = 0.0
    with torch.no_grad(), own.precision():
        given = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
        walk = walked_logits(model, given, device=own.device, dtype=torch.float32)
        for batch, scores in zip(batches, walk, strict=True):
            states, labels = head.predicted(scores, batch["labels"].to(scores.device))
            found += float(cross_entropy(states.float(), labels, reduction="sum"))
    return found / totals(batches).predicted


def _whole(student: Model, job: Job, best: dict[str, Tensor]) -> Objective:
    """The objective with its best weights, on this process alone, low-rank additions merged; on the CPU, if spread."""
    objective = job.objective
    if job.engine.sharded:
        module = load(student, dtype=torch.float32)
        weights.select(module, student, job.training.weights, job.training.seed)
        objective = Objective(
            module,
            logits=objective.logits,
            shares=objective.shares,
            pairs=[],
            projections=nn.ModuleDict(),
        )
        best = {name: value for name, value in best.items() if name.startswith("student.")}
    state.restore(objective, best)
    weights.merge(objective.student)
    return objective


def rounded(module: PreTrainedModel, model: Model) -> PreTrainedModel:
    """Every weight as the checkpoint's type can hold it, in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            info = model.tensors.info.get(name)
            if info is not None and info.dtype != parameter.dtype:
                parameter.copy_(parameter.to(info.dtype))
    return module


def as_model(like: Model, module: PreTrainedModel) -> Model:
    """A trained module under the names, types, config and files of the model it was made from."""
    values = module.state_dict()

    def read(name: str) -> Tensor:
        value: Tensor = values[name]
        return value.detach().to("cpu", like.tensors.info[name].dtype)

    return replace(like, tensors=Tensors(like.tensors.info, read), source=f"{like.source}, trained", weights=())
