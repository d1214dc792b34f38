"""A writer from what was given: a function, a model, or a config's words for one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune.errors import PruneError
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.synthesis.settings import Endpoint, writer_settings
from prune.synthesis.writers.endpoint import endpoint
from prune.synthesis.writers.function import function
from prune.synthesis.writers.local import local
from prune.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    import torch


def writer(given: Any, *, own: Model | None = None, device: str = "cpu", dtype: torch.dtype | None = None) -> Writer:
    """The writer that is meant. `own` is the model of the recipe. PruneError for what is none."""
    from transformers import PreTrainedModel

    if isinstance(given, Writer):
        return given
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], PreTrainedModel):
        module, tokenizer = given
        return local(open_model(module), name=type(module).__name__, module=module, tokenizer=tokenizer, **where)
    if isinstance(given, PreTrainedModel):
        raise PruneError("a loaded model needs its tokenizer: give the pair (model, tokenizer)", where="writer")
    if isinstance(given, Model):
        return local(given, name=_name(given.source), **where)
    if callable(given):
        return function(given)
    return _from_settings(given, own, where)


def check(given: Any, *, own: Model | None = None) -> None:
    """PruneError for what is known to be no writer from the config alone; reads no weights."""
    found = writer_settings(given)
    if isinstance(found, Endpoint):
        need("openai")
        return
    model = own if found is None else open_model(found.model, revision=found.revision, headers=True)
    _refuse_none(model)
    if "CausalLM" not in model.architecture.__name__:  # type: ignore[union-attr]
        raise PruneError(f"a {model.architecture.__name__} does not write text", where="writer")  # type: ignore[union-attr]


def fingerprint(given: str | dict[str, Any]) -> Any:
    """The bytes of a model that a config names; None for another's model, and for the recipe's own."""
    found = writer_settings(given)
    if found is None or isinstance(found, Endpoint):
        return None
    return open_model(found.model, revision=found.revision, headers=True).fingerprint() if _here(found.model) else None


def _here(model: str) -> bool:
    return model == "bundled" or Path(model).expanduser().is_dir()


def need(library: str) -> None:
    """PruneError when a library of the extra is not installed."""
    if find_spec(library) is None:
        raise PruneError(f"synthesis needs {library}: pip install 'prune-kit[synthesize]'")


def _from_settings(given: Any, own: Model | None, where: dict[str, Any]) -> Writer:
    found = writer_settings(given)
    if isinstance(found, Endpoint):
        need("openai")
        prices = (found.prices.get("prompt", 0.0), found.prices.get("reply", 0.0))
        rest = {name: value for name, value in vars(found).items() if name not in ("endpoint", "model", "prices")}
        return endpoint(found.endpoint, found.model, prices=prices, **rest)
    if found is None:
        _refuse_none(own)
        assert own
        return local(own, name="model", **where)
    model = open_model(found.model, revision=found.revision)
    return local(model, name=_name(found.model), batch_size=found.batch_size, top_p=found.top_p, **where)


def _refuse_none(model: Model | None) -> None:
    if model is None:
        raise PruneError(
            "there is no recipe whose model could write; give a model's name, or {endpoint: ..., model: ...}",
            where="writer",
        )


def _name(source: str) -> str:
    """A model's name without the way to it."""
    return Path(source).name if Path(source).exists() else source
