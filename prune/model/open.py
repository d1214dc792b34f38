"""Opening a model: a local folder, a Hub id, or a module in memory. No pickle, no remote code, no fallback."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prune import bundled
from prune.errors import PruneError, unknown
from prune.model import family as families
from prune.model import hub, nonuniform, skeleton
from prune.model.checkpoint import INDEX, read_folder
from prune.model.family import PREFIX
from prune.model.foreign import read_config
from prune.model.model import Model, tokenizer_in
from prune.model.tensors import in_memory

CARRIED = ("generation_config.json", "preprocessor_config.json")
PLACEHOLDERS = ("models/base", "models/one", "models/two")  # in the packaged recipes
TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
    "chat_template",
)


def open(source: str | Path | PreTrainedModel, *, revision: str | None = None, headers: bool = False) -> Model:
    """Open a model without loading it: config, family, tokenizer files, and tensors that are read when asked for.

    `source` is a local folder, "bundled", a Hub id (with `revision`), or a PreTrainedModel, whose tensors are shared
    and never changed. With `headers` only shapes are fetched for a Hub id, so that a run can be checked before
    anything large is downloaded. Raises PruneError when the model is unknown, damaged, or its config and weights
    disagree.
    """
    if isinstance(source, PreTrainedModel):
        return _checked(_from_module(source))
    folder = _local(str(source))
    if folder is None:
        if headers:
            return _checked(_remote(str(source), revision))
        folder = hub.fetch(str(source), revision)
    return _checked(_from_folder(folder, str(source)))


def tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a Hub id, where there need be no model. Raises PruneError."""
    folder = _local(source) or hub.fetch_companions(source, revision)
    return tokenizer_in(_companions(folder), source)


def _checked(model: Model) -> Model:
    if getattr(model.config, "add_cross_attention", False):
        raise PruneError(
            f"a {model.family.model_type} with add_cross_attention attends to another model, which no family states;"
            " open one without",
            where=model.source,
        )
    return replace(model, tensors=skeleton.check(model))


def _local(source: str) -> Path | None:
    """The folder a name means, or None for a Hub id."""
    if source == "bundled":
        return bundled.folder()
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or not hub.looks_like_id(source):
        instead = "give a folder with config.json, a Hub id, or 'bundled'"
        if source in PLACEHOLDERS:
            instead = f"it stands for a model of yours: in its place {instead}"
        raise PruneError(f"no model folder {source!r}; {instead}")
    return None


def _from_folder(folder: Path, source: str) -> Model:
    config = read_config(folder)
    family = families.of(config.model_type)
    files = _companions(folder)
    weights = sorted(path for path in folder.glob("*.safetensors"))
    index = [folder / INDEX] if (folder / INDEX).exists() else []
    tensors = read_folder(folder)
    return Model(config, family, _architecture(config), tensors, source, files, (*index, *weights))


def _from_module(module: PreTrainedModel) -> Model:
    family = families.of(module.config.model_type)
    config = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    config.dtype = module.dtype
    return Model(config, family, _architecture(config), in_memory(module), f"a {type(module).__name__} in memory")


def _remote(source: str, revision: str | None) -> Model:
    """Config and headers of a Hub model; its weights cannot be read."""
    folder, tensors = hub.headers(source, revision)
    config = read_config(folder)
    return Model(config, families.of(config.model_type), _architecture(config), tensors, source)


def _companions(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if _carried(path.name) and path.is_file()}


def _carried(name: str) -> bool:
    """Files that travel along: data for tokenizers and generation, never code and never weights."""
    return name in CARRIED or (name.startswith(TOKENIZER) and name.endswith((".json", ".model", ".txt", ".jinja")))


def _architecture(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class named by the config, among those its family serves."""
    import transformers

    family = families.of(config.model_type)
    stated = config.architectures or [family.classes[0]]
    named = stated[0] if isinstance(stated, list) else stated
    if not isinstance(named, str):
        raise PruneError(f"architectures must be a list of class names, not {stated!r}")
    name = named.removeprefix("Prune")
    if name not in family.classes:
        raise PruneError(unknown(f"architecture of family {family.model_type}", named, family.classes).message)
    stock: type[PreTrainedModel] = getattr(transformers, name)
    if config.model_type.startswith(PREFIX):
        return nonuniform.model_class(family.model_type, stock)
    return stock
