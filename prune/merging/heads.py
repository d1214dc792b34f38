"""Models that tie their head to their embeddings, beside models that do not: every one gets a head of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from prune.merging.config import Config, Reference
from prune.model import skeleton
from prune.model.model import Model
from prune.model.tensors import Edit, edited


def alike(config: Config, models: Mapping[Reference, Model]) -> tuple[dict[Reference, Model], list[str]]:
    """The models, those that tie untied where others do not, and a line for each that was."""
    tied = {reference: ties(model) for reference, model in models.items()}
    if len(set(tied.values())) == 1:
        return dict(models), []
    found, told = dict(models), []
    for reference, model in models.items():
        if tied[reference] and (own := _untied(model)) is not None:
            found[reference] = own
            told.append(
                f"{config.where(config.place(reference))}: {reference} ties its head to its embeddings and others do"
                " not, so its head is read from them and the merged model has one of its own"
            )
    return found, told


def ties(model: Model) -> bool:
    """Whether the config says that the head is the embeddings once more."""
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _untied(model: Model) -> Model | None:
    """The same computation with a head that is stored; None where more than the head is tied."""
    shared = skeleton.tied(skeleton.skeleton(model))
    if len(shared) != 1:
        return None
    config = copy.deepcopy(model.config)
    config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    sources = {**dict.fromkeys(model.tensors.info), **shared}
    edits = {name: Edit(source or name, {}) for name, source in sources.items()}
    return replace(model, config=config, tensors=edited(model.tensors, edits))
