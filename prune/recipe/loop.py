"""The loop: checks a recipe on shapes, runs its steps, keeps each finished one, and puts the output in its place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from prune import files
from prune.document import Document
from prune.errors import PruneError
from prune.progress import Progress, silenced
from prune.recipe import keys, publishing, work
from prune.recipe import output as outputs
from prune.recipe import processes as crowd
from prune.recipe.bind import words
from prune.recipe.follow import take_part
from prune.recipe.load import Recipe, Step, Words, document_of, load
from prune.recipe.processes import Others
from prune.recipe.work import Done
from prune.run import Run
from prune.startup import without_collection


@dataclass(frozen=True)
class Parts:
    """What the loop calls: the steps, and the model layer below them. Tests put small ones in their place."""

    words: Words
    open: Callable[..., Any]  # (source, *, revision, headers) -> Model
    write: Callable[[Any, Path], dict[str, str]]  # a checkpoint into an existing folder -> file name: sha256 as re-read
    fingerprint: keys.Fingerprint
    device: Callable[[str], str]  # "auto", "cpu" or "cuda" -> the one to use
    runtimes: Callable[..., list[dict[str, str]]] = lambda *_: []  # (model, its exports) -> which will load it, or why
    publish: Callable[..., dict[str, str]] = lambda *_, **__: {}  # (output, repo=, private=, revision=) -> the commit


@dataclass(frozen=True)
class Result:
    """What a run did. `steps` have word, options, record and warnings; `timings` go with them, one for one.

    `state` is "done", "unchanged" when the output was there already, "followed" in a process that only helped, or
    "checked" after a dry run, whose records hold what can be known from shapes.
    """

    state: str
    output: Path | None
    steps: list[dict[str, Any]]
    timings: list[dict[str, Any]] = field(default_factory=list)
    work: Path | None = None
    remarks: list[str] = field(default_factory=list)  # of a dry run: on an output that stands already
    runtimes: list[dict[str, str]] = field(default_factory=list)  # which will load the result, and why not

    @property
    def warnings(self) -> list[str]:
        return [warning for step in self.steps for warning in step["warnings"]]


def apply(
    recipe: str | Path | dict,
    *,
    output: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str | None = None,
    restart: bool = False,
    overwrite: bool = False,
    keep_steps: bool = False,
    dry_run: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
    parts: Parts | None = None,
) -> Result:
    """Runs a recipe (a file, a packaged name, or a dict) and writes its output folder, whole or not at all.

    A run that was stopped goes on after its last finished step, and ends with the same bytes; `restart` does them all
    again. An output that is there and is what this recipe makes is left alone; another one of ours is replaced with
    `overwrite`, and a folder that is not ours never. With `dry_run` it stops after the checks. PruneError, with its
    place in the recipe, for everything the user can mend; nothing has been written then.

    Steps that train use `processes` processes, started for them. Under a launcher such as `accelerate launch` they use
    its processes: the first runs the recipe, the others wait for such steps, and their result's state is "followed".
    """
    document = document_of(recipe)  # before torch is imported: a slip in the file is answered at once
    parts, progress = parts or default_parts(), progress or Progress(quiet=True)
    with silenced():
        if crowd.rank() > 0:
            return _follow(parts)
        job = _prepare(
            document,
            parts,
            output=output,
            overrides=overrides,
            device=device,
            progress=progress,
        )
        crowd.refuse_too_many(processes, job.device)
        job.processes, job.local = crowd.taking_part(processes)
        if dry_run:
            steps, small, first = _rehearse(job)
            said = _remarks(job, restart=restart, overwrite=overwrite)
            loads = parts.runtimes(small, outputs.exported(steps[first:]))
            return Result("checked", None, steps, remarks=said, runtimes=loads)
        with crowd.others(processes) as job.others:
            return _run(job, restart=restart, overwrite=overwrite, keep_steps=keep_steps)


def _follow(parts: Parts) -> Result:
    """What all processes but the first of a launcher do."""
    crowd.follow(lambda message: take_part(message, parts))
    return Result("followed", None, [])


def check(recipe: str | Path | dict, **options: Any) -> Result:
    """What `apply` would do, known from config and shapes alone; takes the same options."""
    return apply(recipe, dry_run=True, **options)


def default_parts() -> Parts:
    """The real steps and model layer."""
    with without_collection():
        from prune import data, steps
        from prune.exports.hub import publish
        from prune.exports.preflight import table
        from prune.model.open import open as open_model
        from prune.model.save import write

    return Parts(words(steps), open_model, write, data.fingerprint, pick_device, table, publish)


def pick_device(name: str) -> str:
    """ "cuda" when it is asked for, or "auto" finds one; PruneError when it is asked for and is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise PruneError("no CUDA device is here; choices: auto, cpu", where="device")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass
class _Job:
    recipe: Recipe
    parts: Parts
    device: str
    output: Path | None
    original: Any
    reads: list[dict[str, Any]]
    progress: Progress
    others: Others = field(default_factory=lambda: Others(1))
    processes: int = 1
    local: int = 1


def _prepare(
    document: Document,
    parts: Parts,
    *,
    output: Any,
    overrides: Iterable[str],
    device: str | None,
    progress: Progress,
) -> _Job:
    """Everything that is known before a weight is read: the recipe, the data it names, and the opened model."""
    loaded = load(document, parts.words, overrides=overrides)
    try:
        chosen = parts.device(device or loaded.device)
    except PruneError as error:
        raise PruneError(
            error.message, where=f"--device {device}" if device else loaded.document.where(("device",))
        ) from None
    fingerprint = cache(parts.fingerprint)
    reads = [keys.inputs(step, loaded, fingerprint) for step in loaded.steps]
    try:
        original = parts.open(loaded.model, revision=loaded.revision, headers=True)
    except PruneError as error:
        raise PruneError(str(error), where=loaded.document.where(("model",))) from None
    target = output or loaded.output
    return _Job(loaded, parts, chosen, Path(target) if target else None, original, reads, progress)


def _rehearse(job: _Job) -> tuple[list[dict[str, Any]], Any, int]:
    """All steps on shapes: the records they leave, the model, and the number of the step that changed it last, or 0."""
    model, records, changed = job.original, list[dict[str, Any]](), 0
    for step in job.recipe.steps:
        run = _new_run(job, model, Path(os.devnull), Path(os.devnull), len(records) + 1, dry=True)
        run.earlier = tuple(record["record"] for record in records)
        _call(step, run)
        model, changed = run.model, len(records) + 1 if run.model is not model else changed
        records.append(
            {"word": step.word, "options": step.bound, "record": work.plain(run.record), "warnings": run.warnings}
        )
    return records, model, changed


def _new_run(job: _Job, model: Any, folder: Path, unfinished: Path, number: int, *, dry: bool = False) -> Run:
    return Run(
        model=model,
        original=job.original,
        seed=job.recipe.seed,
        device=job.device,
        dtype=job.recipe.dtype,
        calibration=job.recipe.calibration,
        dry=dry,
        folder=folder,
        unfinished=unfinished,
        progress=Progress(quiet=True) if dry else job.progress,
        number=number,
        processes=job.processes,
        local=job.local,
    )


def _together(job: _Job, step: Step, run: Run, holder: Path | None) -> AbstractContextManager[None]:
    """Calls the other processes to a step that uses them; `holder` is the folder of the model it starts from."""
    if not getattr(step.function, "distributed", False):
        return nullcontext()
    return job.others.called(
        {
            "recipe": job.recipe.given,
            "position": run.number - 1,
            "model": str(holder) if holder else None,
            "device": job.device,
            "folder": str(run.folder),
            "unfinished": str(run.unfinished),
            "earlier": work.plain(list(run.earlier)),
        }
    )


def _call(step: Step, run: Run) -> None:
    try:
        step.function(run, **step.options)
    except PruneError as error:
        raise step.blame(error) from error


def _remarks(job: _Job, *, restart: bool, overwrite: bool) -> list[str]:
    if job.output is None:
        return []
    known = (job.output.resolve(), job.recipe, job.device, job.reads)
    return outputs.remarks(*known, restart=restart, overwrite=overwrite)


def _run(job: _Job, *, restart: bool, overwrite: bool, keep_steps: bool) -> Result:
    if job.output is None:
        raise PruneError("output is missing: name it in the recipe or with --output", where=job.recipe.name)
    target = job.output.resolve()
    outputs.refuse(target, job.recipe.model)
    if not overwrite:
        outputs.refuse_other(target, job.recipe, job.device, job.reads, restart=restart)
    work.refuse_foreign(work.beside(target))
    expected, _, _ = _rehearse(job)
    outputs.refuse_full_disk(target, expected)
    publishing.refuse(expected)
    with job.progress.track("hashing the model"):
        model_files = _whole(job).fingerprint()
    chain = keys.chain(job.recipe, model_files, job.reads, job.device)
    if standing := outputs.standing(target, chain[-1], overwrite=overwrite, restart=restart):
        return _unchanged(job, standing, target)
    with work.opened(target) as folder:
        if standing := outputs.standing(target, chain[-1], overwrite=overwrite, restart=restart):
            return _unchanged(job, standing, target)  # another run has just ended
        places = [work.folder(folder, *place) for place in zip(count(1), (s.word for s in job.recipe.steps), chain)]
        work.keep_only(folder, set() if restart else set(places))
        finished = _steps(job, places, chain)
        content = outputs.manifest(job.recipe, chain[-1], job.device, model_files, job.reads, finished)
        last = outputs.last_checkpoint(finished)
        loaded = job.original if last is None else job.parts.open(places[last], revision=None, headers=True)
        beside = outputs.exported(content["steps"][0 if last is None else last + 1 :])
        content["runtimes"] = job.parts.runtimes(loaded, beside)
        with files.staged(target, overwrite=overwrite) as staging:
            table = outputs.assemble(staging, list(zip(places, finished, strict=True)))
            if last is None:
                table |= job.parts.write(job.original, staging)
            outputs.seal(staging, content, table, [done.timings for done in finished], _licence(job.original))
        if not keep_steps:
            files.discard(folder)
    publishing.send(target, content["steps"], job.parts.publish, job.progress)
    timings = [done.timings for done in finished]
    work_ = folder if keep_steps else None
    return Result("done", job.output, content["steps"], timings, work_, runtimes=content["runtimes"])


def _whole(job: _Job) -> Any:
    """The original model with its weights at hand: a Hub model was opened by its headers alone so far."""
    if not getattr(job.original, "weights", True):
        job.original = job.parts.open(job.recipe.model, revision=job.recipe.revision, headers=False)
    return job.original


def _licence(model: Any) -> str | None:
    weights = getattr(model, "weights", ())
    return outputs.licence_of(Path(weights[0]).parent) if weights else None


def _unchanged(job: _Job, standing: dict[str, Any], target: Path) -> Result:
    if work.has_stale(target):
        with work.opened(target):  # which cleans up
            pass
    job.progress.say(f"{job.output} is there already, and is what this recipe makes: nothing to do")
    timings = files.read_json(target / files.TIMINGS)["steps"] if (target / files.TIMINGS).is_file() else []
    publishing.send(target, standing["steps"], job.parts.publish, job.progress)
    return Result("unchanged", job.output, standing["steps"], timings, runtimes=standing.get("runtimes", []))


def _steps(job: _Job, folders: list[Path], chain: list[str]) -> list[Done]:
    """Runs the steps that are not finished yet, each on what the last one to change the model left on the disk."""
    finished: list[Done] = []
    exports: tuple[Path, ...] = ()
    model: Any = job.original
    holder: Path | None = None
    for position, (step, key) in enumerate(zip(job.recipe.steps, chain, strict=True)):
        name = f"step {position + 1} of {len(chain)}: {step.word}"
        done = work.recall(folders[position], key)
        job.progress.say(f"{name}, finished before" if done else name)
        if done is None:
            if model is None:
                model = job.parts.open(holder, revision=None, headers=False)
            earlier = tuple(before.record for before in finished)
            done = _perform(job, step, key, folders[position], model, holder, earlier, exports)
        files.discard(work.unfinished(folders[position]))
        if done.checkpoint:
            model, holder, exports = None, folders[position], ()
        elif done.artefacts:
            exports = (*exports, folders[position])
        finished.append(done)
    return finished


def _perform(
    job: _Job,
    step: Step,
    key: str,
    folder: Path,
    model: Any,
    holder: Path | None,
    earlier: tuple[dict[str, Any], ...],
    exports: tuple[Path, ...],
) -> Done:
    """One step; `holder` is the folder of the model, None for the original; see `Run` for the last two."""
    files.discard(folder)  # it may be there, but damaged
    with files.staged(folder) as staging:
        run = _new_run(job, model, staging, work.unfinished(folder), len(earlier) + 1)
        run.earlier, run.exports = earlier, exports
        began = time.perf_counter()
        with _together(job, step, run, holder):
            _call(step, run)
        written = job.parts.write(run.model, staging) if run.model is not model else {}
        for call in run.afterwards:
            call()
        table = {name: files.sha256(staging / name) for name in files.names(staging) if name not in written}
        run.timings["seconds"] = time.perf_counter() - began
        done = Done(
            key=key,
            word=step.word,
            options=work.plain(step.bound),
            record=work.plain(run.record),
            warnings=run.warnings,
            checkpoint=sorted(written),
            files=table | written,
            timings=work.plain(run.timings),
        )
        work.record(staging, done)
    job.progress.detail(f"{folder.name} took {run.timings['seconds']:.1f} s on {job.device}")
    return done
