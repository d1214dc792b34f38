"""Commands that take a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import prune
from prune.cli._command import DEVICES, DTYPES, Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("model")
@click.option("--revision", help="Of a Hub model.")
def inspect(model: str, *, revision: str | None, progress: Progress) -> Shown:  # noqa: ARG001
    """Show the groups of MODEL, and the shares of parameters and work they hold; of a foreign one, what is missing."""
    from prune.report import stranger as unfamiliar
    from prune.report import summary
    from prune.stranger import stranger

    if unknown := stranger(model, revision=revision):
        return unknown, unfamiliar.blocks(unknown), 0
    found = prune.inspect(prune.open(model, revision=revision, headers=True))
    return found, summary.inspection(found), 0


@command
@click.argument("model")
@click.option("--revision", help="Of a Hub model.")
@click.option("--beside", metavar="MODEL", help="Another model, say the original, to stand beside it as `before`.")
@click.option("--perplexity", metavar="DATA", help="python-docs, a local file, wikitext, c4 or another Hub dataset.")
@click.option("--accuracy", metavar="DATA", help="Labelled examples, for classifiers; text for masked words.")
@click.option("--label", help="The column of the class, the tags or the target text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a window.")
@click.option("--stride", type=click.IntRange(1), help="New tokens in each window; all but one when left out.")
@click.option("--samples", type=click.IntRange(1), help="At most this many windows.")
@click.option("--field", help="The text field of a .jsonl, .parquet, .csv or Hub dataset.")
@click.option("--split", help="Of a Hub dataset or python-docs.")
@click.option("--documents", type=click.Choice(["joined", "separate"]), default="joined", show_default=True)
@click.option("--speed", is_flag=True, help="Time prompts and the tokens after them, and take the peak of memory.")
@click.option("--batch", type=click.IntRange(1), multiple=True, help="Prompts at once, for --speed. Repeatable.")
@click.option("--prompt-length", type=click.IntRange(1), multiple=True, help="Its tokens, for --speed. Repeatable.")
@click.option("--memory/--no-memory", default=True, help="Peaks of memory, for --speed; each takes a process.")
@click.option("--task", "tasks", multiple=True, help="kmmlu, or a task of lm-eval by name. Repeatable.")
@click.option("--shots", type=click.IntRange(0), multiple=True, help="Solved questions before each. Repeatable.")
@click.option("--limit", type=click.IntRange(1), help="At most this many questions of each task or subject.")
@click.option("--kmmlu", "folder", metavar="FOLDER", help="Where KMMLU's CSV files lie; from the Hub when left out.")
@click.option("--subject", "subjects", multiple=True, help="Of KMMLU, or `found` for those in the folder. Repeatable.")
@click.option("--scorer", type=click.Choice(["own", "lm-eval"]), help="Of KMMLU.")
@click.option("--generate", multiple=True, metavar="PROMPT", help="Have MODEL continue it. Repeatable.")
@click.option("--tokens", type=click.IntRange(1), default=48, show_default=True, help="At most, after each prompt.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--dtype", type=DTYPES, default="auto", show_default=True)
def evaluate(
    model: str,
    *,
    revision: str | None,
    beside: str | None,
    device: str,
    dtype: str,
    progress: Progress,
    **options: Any,
) -> Shown:
    """Measure MODEL: its size, and what is asked for. MODEL may also be an ONNX export, for --speed."""
    from prune.cli._evaluate import arguments, opened
    from prune.recipe.loop import pick_device
    from prune.report import evaluated

    place = pick_device(device)
    given = arguments(options)
    models, graphs = opened(model, revision, beside, given)
    found = prune.evaluate(models, graphs=graphs, device=place, dtype=dtype, progress=progress, **given)
    return found, evaluated.evaluation(found), 0


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="onnx", show_default=True, help="See `prune list`.")
@click.option("--revision", help="Of a Hub model.")
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="An option of the format. Repeatable.")
@click.option("--calibration", metavar="DATA", help="Text for what looks at data, such as --set static=true.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Windows of calibration text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a window.")
def export(
    model: str,
    out: Path,
    *,
    kind: str,
    revision: str | None,
    overwrite: bool,
    changes: tuple[str, ...],
    calibration: str | None,
    progress: Progress,
    **windows: Any,
) -> Shown:
    """Write MODEL to the folder OUT in a format that others serve."""
    from prune import files
    from prune.startup import without_collection

    with without_collection():
        from prune.exports.export import exporter
        from prune.recipe.bind import bind_texts
        from prune.report import summary

        options: dict[str, Any] = bind_texts(exporter(kind), changes)
    files.refuse_occupied(out, overwrite=overwrite)  # before a Hub model is downloaded
    opened = prune.open(model, revision=revision)
    if calibration is not None:
        options["calibration"] = prune.batches(calibration, opened.tokenizer(), **windows)
    found = prune.export(opened, out, format=kind, overwrite=overwrite, progress=progress, **options)
    return found, summary.exported(found, out), 0


@command
@click.argument("model")
@click.option("--revision", help="Of a Hub model.")
@click.option(
    "--data", default="python-docs", show_default=True, help="python-docs, a local file, or a Hub dataset id."
)
@click.option("--what", multiple=True, help="A kind of group, once for each; all that lie in layers when left out.")
@click.option(
    "--ratio", "ratios", type=float, multiple=True, help="A fraction removed, once for each; 0.25, 0.5, 0.75."
)
@click.option("--criterion", default="wanda", show_default=True, help="What is removed first.")
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="Windows of text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a window.")
@click.option("--field", help="The text field of a .jsonl, .parquet or Hub dataset.")
@click.option("--split", help="Of a Hub dataset.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here: .svg, .png or .pdf.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--dtype", type=DTYPES, default="auto", show_default=True)
def sensitivity(
    model: str,
    *,
    revision: str | None,
    data: str,
    what: tuple[str, ...],
    ratios: tuple[float, ...],
    criterion: str,
    table: Path | None,
    plot: Path | None,
    device: str,
    dtype: str,
    progress: Progress,
    **options: Any,
) -> Shown:
    """Measure what MODEL's predictions lose as each group of each layer shrinks alone."""
    from dataclasses import asdict

    from prune.measure import compute_dtype
    from prune.recipe.loop import pick_device
    from prune.remove.sensitivity_plot import check_plot, write_plot, write_table
    from prune.report import summary
    from prune.steps._common import given

    if plot is not None:
        check_plot(plot)  # before anything is measured
    place = pick_device(device)
    opened = prune.open(model, revision=revision)
    text = prune.batches(data, opened.tokenizer(), **given(options))
    chosen: dict[str, Any] = {"what": what or None, **({"ratios": ratios} if ratios else {})}
    points = prune.sensitivity(
        opened, text, criterion=criterion, device=place, dtype=compute_dtype(place, dtype), progress=progress, **chosen
    )
    if table is not None:
        write_table(points, table)
    if plot is not None:
        write_plot(points, plot)
    found = [asdict(point) for point in points]
    return found, summary.sensitivity(found), 0
