"""The models a config names, opened: folders, Hub ids, names given to opened models, adapters on top of any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prune.errors import PruneError
from prune.merging.config import Config, Reference
from prune.merging.lora import with_adapter
from prune.model import hub
from prune.model.model import Model
from prune.model.open import open as open_model


def opened(
    config: Config,
    given: Mapping[str, Model],
    *,
    headers: bool = False,
    change: Callable[[Model], Model] | None = None,
) -> dict[Reference, Model]:
    """Every model that a config refers to. Relative folders are looked for here, then beside the config's file.

    `given` are opened models by name. With `headers` only shapes are fetched of Hub models. `change`
    is done to each model that was not given.
    """
    found = {}
    for reference in config.references:
        try:
            model = _open(reference, config, given, headers=headers)
            found[reference] = change(model) if change and reference.model not in given else model
        except PruneError as error:
            raise PruneError(str(error), where=config.where(config.place(reference))) from None
    return found


def _open(reference: Reference, config: Config, given: Mapping[str, Model], *, headers: bool) -> Model:
    if reference.model in given:
        model = given[reference.model]
    else:
        model = open_model(folder(reference.model, config), revision=reference.revision, headers=headers)
    if reference.lora is None:
        return model
    place = Path(folder(reference.lora, config))
    if not place.is_dir():
        if not hub.looks_like_id(str(place)):
            raise PruneError(f"no adapter folder {str(place)!r}")
        place = hub.fetch_adapter(str(place), reference.lora_revision)
    return with_adapter(model, place)


def folder(path: str, config: Config) -> str:
    """A path as it leads to something: from here, or from where the config's file lies; any other text as it is."""
    beside = Path(config.document.name).parent / path
    if path != "bundled" and not Path(path).expanduser().exists() and beside.exists():
        return str(beside)
    return path
