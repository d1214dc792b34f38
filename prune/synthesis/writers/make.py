"""A writer from what was given: a function, a model, or a config's words for one. torch is imported only for models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune.errors import PruneError, need
from prune.synthesis.settings import Endpoint, Local, Settings, check_prices, writer_settings
from prune.synthesis.writers.endpoint import endpoint
from prune.synthesis.writers.function import function
from prune.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    import torch

    from prune.model.model import Model


def writer(given: Any, *, own: Model | None = None, device: str = "cpu", dtype: torch.dtype | None = None) -> Writer:
    """The writer that is meant. `own` is the model of the recipe. PruneError for what is none."""
    if isinstance(given, Writer):
        return given
    if not isinstance(given, (str, Mapping)):
        return _from_object(given, device, dtype)
    found = writer_settings(given)
    if isinstance(found, Endpoint):
        need("openai", "synthesize", what="an endpoint", where="writer")
        rest = {name: value for name, value in vars(found).items() if name not in ("endpoint", "model", "prices")}
        return endpoint(found.endpoint, found.model, prices=found.paid(), **rest)
    return _local(found, own, device, dtype)


def check(given: str | Mapping[str, Any], settings: Settings, *, own: Model | None = None) -> None:
    """PruneError for what is known to be no writer from the config alone; reads no weights."""
    found = writer_settings(given)
    check_prices(settings, found.paid() if isinstance(found, Endpoint) else (0.0, 0.0))
    if isinstance(found, Endpoint):
        need("openai", "synthesize", what="an endpoint", where="writer")
        return
    from prune.synthesis.writers.local import refuse

    refuse(_own(own) if found is None else _opened(found, headers=True))


def fingerprint(given: str | Mapping[str, Any]) -> Any:
    """The bytes of a model that a config names; None for another's model, and for the recipe's own."""
    found = writer_settings(given)
    return _opened(found, headers=True).fingerprint() if isinstance(found, Local) and _here(found.model) else None


def _from_object(given: Any, device: str, dtype: torch.dtype | None) -> Writer:
    from transformers import PreTrainedModel

    from prune.model.model import Model
    from prune.model.open import open as open_model
    from prune.synthesis.writers.local import local

    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], PreTrainedModel):
        module, tokenizer = given
        name = type(module).__name__
        return local(open_model(module), name=name, module=module, tokenizer=tokenizer, device=device, dtype=dtype)
    if isinstance(given, PreTrainedModel):
        raise PruneError("a loaded model needs its tokenizer: give the pair (model, tokenizer)", where="writer")
    if isinstance(given, Model):
        return local(given, name=_name(given.source), device=device, dtype=dtype)
    if callable(given):
        return function(given)
    raise PruneError(f"must be a function, a model or a mapping, not {given!r:.60}", where="writer")


def _local(found: Local | None, own: Model | None, device: str, dtype: torch.dtype | None) -> Writer:
    from prune.synthesis.writers.local import local

    if found is None:
        return local(_own(own), name="model", device=device, dtype=dtype)
    how: dict[str, Any] = {"batch_size": found.batch_size, "top_p": found.top_p, "device": device, "dtype": dtype}
    return local(_opened(found), name=_name(found.model), **how)


def _opened(found: Local, *, headers: bool = False) -> Model:
    from prune.model.open import open as open_model

    try:
        return open_model(found.model, revision=found.revision, headers=headers)
    except PruneError as error:
        raise PruneError(str(error), where="writer") from None


def _own(model: Model | None) -> Model:
    if model is None:
        raise PruneError(
            "there is no recipe whose model could write; give a model's name, or {endpoint: ..., model: ...}",
            where="writer",
        )
    return model


def _here(model: str) -> bool:
    return model == "bundled" or Path(model).expanduser().is_dir()


def _name(source: str) -> str:
    """A model's name without the way to it."""
    return Path(source).name if Path(source).exists() else source
