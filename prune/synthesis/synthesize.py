"""A small pool of instructions grown into a varied one, with answers (Evol-Instruct, https://arxiv.org/abs/2304.12244)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune import files
from prune.errors import PruneError, need
from prune.progress import Progress
from prune.synthesis import answers, languages, output, rounds, seeds
from prune.synthesis.attempt import Job
from prune.synthesis.diversify import check as check_grid
from prune.synthesis.eliminate.similar import prepare
from prune.synthesis.items import Attempt
from prune.synthesis.page import page
from prune.synthesis.settings import Settings, check_prices, settings
from prune.synthesis.tally import Tally
from prune.synthesis.writers import make
from prune.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    import torch

ANSWERS, SCRATCH, LOCK = "answers.jsonl", "scratch", "lock"


def synthesize(
    folder: str | Path,
    *,
    seeds: str | Path,
    writer: Any,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evolve the instructions in `seeds` into `folder`: data.jsonl and data.parquet in the chat format, with lineage.

    `writer` is a function from a prompt to a text, an opened or loaded model (a loaded one with its tokenizer, as a
    pair), a model's name, or a mapping such as {"endpoint": url, "model": name}. `options` are those of the recipe word
    `synthesize` (docs/recipe.md), and `seed`. The folder appears whole; a run that was stopped goes on where it was,
    from `FOLDER.work`. Gives what was kept, rejected and covered. PruneError for what the user can mend.
    """
    made = settings(options)
    check(made, seeds)
    ready = make.writer(writer, device=device, dtype=dtype)
    check_prices(made, ready.prices)
    target = Path(folder).resolve()
    key = key_of(made, seeds, ready)
    if files.is_ours(target) and files.manifest(target).get("key") == key and not files.verify(target):
        return {**files.manifest(target)["synthesis"], "state": "unchanged"}
    files.refuse_occupied(target, overwrite=overwrite)
    with _held(target) as work, files.staged(target, overwrite=overwrite) as staging:
        record, timings = write(staging, work, seeds=seeds, writer=ready, settings=made, progress=progress)
        files.write_json(staging / files.TIMINGS, timings)
        about = _about(made, seeds, writer if isinstance(writer, (str, dict)) else ready.name)
        made_of = {"format": files.MARK, "key": key, "synthesis": record, **about}
        files.write_json(staging / files.MANIFEST, made_of | {"files": files.hashes(staging)})
    files.discard(work)
    return {**record, "state": "done"}


def check(settings: Settings, source: str | Path) -> None:
    """PruneError for what can be known before the writer is asked anything: seeds, languages, libraries."""
    need("datasketch", "synthesize", what="synthesis")
    known = languages.load(settings.languages)
    only = languages.chosen(settings.language, known)
    met = {
        (only or languages.tell(item.instruction, known.values())).name
        for item in seeds.known(source, field=settings.field, split=settings.split)
    }
    if grid := settings.grid():
        check_grid(grid, [known[name] for name in sorted(met)], known.values())


def write(
    folder: Path,
    work: Path,
    *,
    seeds: str | Path,
    writer: Writer,
    settings: Settings,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fills an existing folder; what was answered is kept in `work`, or in the file that the settings name.

    Gives the record, which is the same for the same answers, and the timings.
    """
    began = time.perf_counter()
    progress = progress or Progress(quiet=True)
    tally = Tally(writer)
    with (
        _scratch(work) as scratch,
        _table(scratch / "answers.sqlite") as index,
        _table(scratch / "kept.sqlite") as kept,
        _alone(settings.answers) as log,
        answers.opened(log or work / ANSWERS, index, writer) as remembered,
        output.opened(folder, writer.name) as written,
    ):
        prepare(kept)
        job = Job(settings, remembered, kept, tally, _language_of(settings))

        def keep(attempt: Attempt) -> None:
            tally.add(attempt)
            written.add(attempt)

        rows = _rows(seeds, settings)
        scale = rounds.run(job, rows, scratch, keep, progress)
    record = tally.record(scale)
    (folder / output.PAGE).write_text(page(record, tally.examples), encoding="utf-8")
    return record, {"seconds": time.perf_counter() - began, "asked": remembered.asked}


def key_of(settings: Settings, source: str | Path, writer: Writer) -> str:
    """What tells the result of these inputs from that of others."""
    import prune

    said = [
        prune.__version__,
        {name: value for name, value in vars(settings).items() if name != "answers"},
        seeds.fingerprint(str(source)),
        languages.digest(languages.load(settings.languages).values()),
        writer.identity,
        writer.source,
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _about(settings: Settings, source: str | Path, writer: Any) -> dict[str, Any]:
    """What it takes to make the output again."""
    import prune

    return {
        "settings": {name: value for name, value in vars(settings).items() if name != "answers"},
        "seeds": {"source": str(source), "fingerprint": seeds.fingerprint(str(source))},
        "writer": writer,
        "versions": {"prune": prune.__version__},
    }


def _rows(source: str | Path, settings: Settings) -> Iterator[Any]:
    return seeds.seeds(source, field=settings.field, split=settings.split)


def _language_of(settings: Settings) -> Callable[[str], languages.Language]:
    known = languages.load(settings.languages)
    only = languages.chosen(settings.language, known)
    return lru_cache(maxsize=1024)(lambda text: only or languages.tell(text, known.values()))


@contextmanager
def _held(target: Path) -> Iterator[Path]:
    """The work folder beside an output, for this run alone."""
    work = target.with_name(f"{target.name}.work")
    found = [path.name for path in work.iterdir()] if work.is_dir() else []
    strange = sorted(set(found) - {ANSWERS, SCRATCH, LOCK})
    if strange:
        raise PruneError(f"holds {strange[0]!r}, which is not of a synthesis; choose another output", where=str(work))
    files.make(work)
    with files.lock(work / LOCK):
        files.clean_stale(target.parent, target.name)
        yield work


@contextmanager
def _alone(named: str | None) -> Iterator[Path | None]:
    """The file of answers that the user named, held against other runs; None where there is none."""
    if named is None:
        yield None
        return
    path = Path(named).expanduser()
    files.make(path.parent)
    with files.lock(path.with_name(f"{path.name}.lock")):
        yield path


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """A folder for what need not outlive the run."""
    scratch = work / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    files.make(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _table(path: Path) -> Iterator[sqlite3.Connection]:
    """A table on the disk that is made anew each time: it needs no journal, and is one transaction without an end."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.close()
