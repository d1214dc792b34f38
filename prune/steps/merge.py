"""`merge`: models that were fine-tuned from one base become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from prune import forecast
from prune.document import Document, read
from prune.errors import PruneError
from prune.merging import chart, prints
from prune.merging.merge import Merged, needs, prepare, refuse_too_large
from prune.merging.search import started
from prune.model.model import Model
from prune.remove.cut import cut
from prune.run import Run
from prune.steps._common import given
from prune.steps._search import Search, of_data, searched


def merge(
    run: Run,
    *,
    config: str | None = None,
    merge_method: str | None = None,
    base_model: str | dict | None = None,
    models: list | None = None,
    slices: list | None = None,
    modules: dict | None = None,
    parameters: dict | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    tokenizer_source: str | dict | None = None,
    tokenizer: dict | None = None,
    chat_template: str | None = None,
    random_seed: int | None = None,
    compat: Literal["mergekit"] | None = None,
    cut_alike: bool = False,
    search: Search | None = None,
) -> None:
    """Merge models that were fine-tuned from one base; every key of a mergekit config is an option of this step.

    config: a mergekit YAML file, in place of the keys below.
    merge_method: how tensors are merged: `prune list` names the methods.
    base_model: what the models were fine-tuned from. Here and below a model is a folder, a Hub id, `current` (the model
        as this step finds it) or `original` (the recipe's); `+adapter` puts a LoRA adapter on top.
    models: whole models to merge, each `{model: ..., parameters: {...}}`.
    slices: layers to stack, each slice made of `sources: [{model: ..., layer_range: [first, one past the last]}]`.
    modules: models or slices by the name of the part of the model that they make.
    parameters: of the method: numbers, lists of numbers (from the first layer to the last), or lists of filters.
    dtype: what the models are cast to, and what is written unless out_dtype says otherwise.
    out_dtype: the type of the weights that are written.
    tokenizer_source: whose tokens the result has: `union`, `base` or a model; needed where the vocabularies differ.
    tokenizer: the same with more to say: `source`, `tokens`, `pad_to_multiple_of`.
    chat_template: a Jinja template, `auto`, or one of chatml, alpaca, exaone, llama3, mistral.
    random_seed: of random masks; the recipe's seed when left out.
    compat: `mergekit` computes in dtype and draws masks as mergekit 0.1.5 does, to the last bit.
    cut_alike: cut every model but `current` as the removal steps before this one cut the recipe's model.
    search: look for what measures best (CMA-ES): `weights` (how many over the layers of each model), `layers` (how
        often each layer may stand; 0 leaves their order alone), `metric` (perplexity, accuracy, or task with its
        `task` of lm-eval), `data` (with `field`, `label`, `split`, `samples`, `length`), `budget` (how many merges
        are tried).
    """
    keys = given(
        {
            "merge_method": merge_method,
            "base_model": base_model,
            "models": models,
            "slices": slices,
            "modules": modules,
            "parameters": parameters,
            "dtype": dtype,
            "out_dtype": out_dtype,
            "tokenizer_source": tokenizer_source,
            "tokenizer": tokenizer,
            "chat_template": chat_template,
            "random_seed": random_seed,
        }
    )
    if config is not None and keys:
        raise PruneError(f"a config says it all; take away {', '.join(keys)}", where="config")
    document = read(config, aliases=True) if config is not None else Document("merge", keys)
    settings: dict[str, Any] = {
        "models": {"current": run.model, "original": run.original},
        "seed": run.seed if document.value.get("random_seed") is None else None,
        "compat": compat,
        "device": run.device,
        "change": _alike(run) if cut_alike else None,
    }
    first = document if search is None else started(document, weights=search.get("weights", 1))
    merged = prepare(first, profile=True, headers=run.dry, **settings)
    run.warnings += merged.plan.warnings
    run.record["merge"] = merged.record
    _record_sizes(run, merged.model)
    if run.dry:
        run.record["needs"] = forecast.together(needs(merged))
        if search is not None:
            searched(run, merged, document, search, settings)
        return
    refuse_too_large(merged)
    if search is not None:
        document, path = searched(run, merged, document, search, settings)
        merged = prepare(document, profile=True, **settings)
        merged = merged if path is None else merged.stacked(path)
        _record_sizes(run, merged.model)
    run.model = merged.model
    run.afterwards.append(lambda: _profile(run, merged))


merge.calibrated = False  # type: ignore[attr-defined]
merge.prints = {  # type: ignore[attr-defined]  # options that name models -> what tells their bytes
    "config": prints.of_config,
    "search": of_data,
    **dict.fromkeys(("base_model", "models", "slices", "modules", "tokenizer_source", "tokenizer"), prints.of_value),
}


def _record_sizes(run: Run, model: Model) -> None:
    run.record.update(
        parameters=[run.model.tensors.parameters, model.tensors.parameters],
        bytes=[run.model.tensors.bytes, model.tensors.bytes],
        saved_as=model.config.model_type,
        architecture=model.architecture.__name__,
    )


def _profile(run: Run, merged: Merged) -> None:
    """Once the merge was written: what it did to each layer, in the record and as table and plot."""
    assert merged.profile is not None
    run.record["merge"]["layers"] = rows = merged.profile.rows()
    if rows:
        chart.write(rows, run.folder / "merge")


def _alike(run: Run) -> Callable[[Model], Model]:
    """What cuts another model as the steps before this one cut the recipe's; in a dry run, its shapes afterwards."""
    shapes, after = {name: info.shape for name, info in run.original.tensors.info.items()}, run.model

    def change(model: Model) -> Model:
        if {name: info.shape for name, info in model.tensors.info.items()} != shapes:
            raise PruneError(f"{model.source} has not the shapes of the recipe's model", where="cut_alike")
        if run.dry:
            return replace(model, config=after.config, architecture=after.architecture, tensors=after.tensors)
        for record in run.earlier:
            model = cut(model, record["plan"]) if "plan" in record else model
        return model

    return change
