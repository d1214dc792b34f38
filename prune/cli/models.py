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
@click.option("--perplexity", metavar="DATA", help="python-docs, a local file, or a Hub dataset id.")
@click.option("--accuracy", metavar="DATA", help="Labelled examples, for classifiers; text for masked words.")
@click.option("--label", help="The column of the class, the tags or the target text.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a window.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows; the length when left out.")
@click.option("--samples", type=click.IntRange(1), help="At most this many windows.")
@click.option("--field", help="The text field of a .jsonl, .parquet or Hub dataset.")
@click.option("--split", help="Of a Hub dataset or python-docs.")
@click.option("--speed", is_flag=True, help="Measure the latency of a forward pass.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--dtype", type=DTYPES, default="auto", show_default=True)
def evaluate(model: str, *, revision: str | None, device: str, dtype: str, **options: Any) -> Shown:
    """Measure MODEL: its size, and its perplexity, accuracy and latency where asked for."""
    from prune.recipe.loop import pick_device
    from prune.report import summary
    from prune.steps._common import compute_dtype

    place = pick_device(device)
    opened = prune.open(model, revision=revision)
    found = prune.evaluate(opened, device=place, dtype=compute_dtype(place, dtype), **options)
    return found, summary.evaluation(found), 0


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="onnx", show_default=True, help="See `prune list`.")
@click.option("--revision", help="Of a Hub model.")
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="An option of the format. Repeatable.")
def export(
    model: str,
    out: Path,
    *,
    kind: str,
    revision: str | None,
    overwrite: bool,
    changes: tuple[str, ...],
    progress: Progress,
) -> Shown:
    """Write MODEL to the folder OUT in a format that others serve."""
    from prune import files
    from prune.exports.export import exporter
    from prune.recipe.bind import bind_texts
    from prune.report import summary

    options = bind_texts(exporter(kind), changes)
    files.refuse_occupied(out, overwrite=overwrite)  # before a Hub model is downloaded
    opened = prune.open(model, revision=revision)
    found = prune.export(opened, out, format=kind, overwrite=overwrite, progress=progress, **options)
    return found, summary.exported(found, out), 0
