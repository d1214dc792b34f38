"""Reading a merge config: strictly, with the place of whatever it cannot mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from prune.document import At, Document, read
from prune.errors import PruneError, unknown
from prune.merging.block import truth
from prune.merging.config import Config, Dtype, Reference, Settings, Slice, Source, Token, Vocabulary

DTYPES = ("float32", "bfloat16", "float16", "float64")
KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "random_seed",
    "name",
)


def parse(config: str | Path | Mapping[str, Any] | Document, methods: Collection[str]) -> Config:
    """A config from a file, a mapping or a document. Raises PruneError, with its place, for what it cannot mean."""
    if isinstance(config, Document):
        document = config
    else:
        document = Document("config", dict(config)) if isinstance(config, Mapping) else read(config, aliases=True)
    value, where = document.value, document.where
    for key in value:
        if key not in KEYS:
            raise unknown("key", key, KEYS).at(where((key,), key=True))
    method = value.get("merge_method")
    if not isinstance(method, str) or method not in methods:
        raise unknown("merge_method", method, methods).at(where(("merge_method",)))
    base = _optional(value, "base_model", document, _reference)
    slices, module, whole = _slices(value, document)
    return Config(
        method=method,
        slices=slices,
        whole=whole,
        base=base,
        settings=_settings(value.get("parameters"), document, ("parameters",)),
        module=module,
        dtype=_dtype(value.get("dtype"), document, ("dtype",)),
        out_dtype=_dtype(value.get("out_dtype"), document, ("out_dtype",)),
        vocabulary=_vocabulary(value, document),
        chat_template=_optional(value, "chat_template", document, _text),
        seed=_optional(value, "random_seed", document, _whole),
        document=document,
    )


def _slices(value: Mapping[str, Any], document: Document) -> tuple[tuple[Slice, ...], Settings, bool]:
    """The slices, the settings of the module they are in, and whether models were named instead of slices."""
    given = [key for key in ("models", "slices", "modules") if value.get(key)]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise PruneError(
            f"exactly one of models, slices and modules must be there, not {found}", where=document.where()
        )
    if given == ["modules"]:
        modules = _mapping(value["modules"], document, ("modules",))
        if len(modules) != 1:
            raise PruneError("one module is merged at a time: the text model", where=document.where(("modules",)))
        name, inside = next(iter(modules.items()))
        at: At = ("modules", name)
        _known(inside, ("models", "slices", "parameters"), document, at)
        kinds = [key for key in ("models", "slices") if inside.get(key)]
        if len(kinds) != 1:
            raise PruneError("exactly one of models and slices must be there", where=document.where(at))
        found_slices = _listed(inside[kinds[0]], kinds[0], document, (*at, kinds[0]))
        return found_slices, _settings(inside.get("parameters"), document, (*at, "parameters")), kinds == ["models"]
    return _listed(value[given[0]], given[0], document, (given[0],)), {}, given == ["models"]


def _listed(items: Any, kind: str, document: Document, at: At) -> tuple[Slice, ...]:
    if not isinstance(items, list):
        raise PruneError(f"{kind} must be a list", where=document.where(at))
    if kind == "models":
        return (Slice(tuple(_source(item, document, (*at, n), False) for n, item in enumerate(items)), None, {}, at),)
    return tuple(_slice(item, document, (*at, n)) for n, item in enumerate(items))


def _slice(item: Any, document: Document, at: At) -> Slice:
    _known(item, ("sources", "base_model", "parameters", "residual_weight"), document, at)
    if item.get("residual_weight") is not None:
        raise PruneError(
            "is not computed: a slice has no weight for what flows past it",
            where=document.where((*at, "residual_weight")),
        )
    sources = item.get("sources")
    if not isinstance(sources, list) or not sources:
        raise PruneError("a slice needs sources, each a model with its layer_range", where=document.where(at))
    return Slice(
        tuple(_source(source, document, (*at, "sources", n), True) for n, source in enumerate(sources)),
        _optional(item, "base_model", document, _reference, at),
        _settings(item.get("parameters"), document, (*at, "parameters")),
        at,
    )


def _source(item: Any, document: Document, at: At, sliced: bool) -> Source:
    _known(item, ("model", "layer_range", "parameters") if sliced else ("model", "parameters"), document, at)
    if item.get("model") is None:
        raise PruneError("model is missing", where=document.where(at))
    return Source(
        _reference(item["model"], document, (*at, "model")),
        _layers(item.get("layer_range"), document, (*at, "layer_range")) if sliced else None,
        _settings(item.get("parameters"), document, (*at, "parameters")),
        at,
    )


def _layers(value: Any, document: Document, at: At) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) is int for number in value):
        raise PruneError(f"layer_range must be [first, one past the last], not {value!r}", where=document.where(at))
    first, last = value
    if not 0 <= first < last:
        raise PruneError(f"layer_range [{first}, {last}] has no layers: it goes up, from 0", where=document.where(at))
    return first, last


def _reference(value: Any, document: Document, at: At) -> Reference:
    """`path`, `path@revision`, `path+adapter`, or {model: ..., lora: ...}, each end a text or {path, revision}."""
    if isinstance(value, str) and value:
        if Path(value).exists():
            return Reference(value)
        model, *adapters = value.split("+")
        if len(adapters) > 1:
            raise PruneError(f"{value!r} names more than one adapter", where=document.where(at))
        return Reference(*_spelt(model), *(_spelt(adapters[0]) if adapters else ()))
    if isinstance(value, Mapping):
        if "path" in value:
            return Reference(*_end(value, document, at))
        _known(value, ("model", "lora"), document, at)
        lora = () if value.get("lora") is None else _end(value["lora"], document, (*at, "lora"))
        return Reference(*_end(value.get("model"), document, (*at, "model")), *lora)
    raise PruneError(
        f"a model is a folder or a Hub id, perhaps with `+adapter`, not {value!r}", where=document.where(at)
    )


def _end(value: Any, document: Document, at: At) -> tuple[str, str | None]:
    """The path and revision of a model or an adapter: `path@revision`, or {path, revision}."""
    if not isinstance(value, Mapping):
        return _spelt(_path(value, document, at))
    _known(value, ("path", "revision"), document, at)
    revision = _optional(value, "revision", document, _text, at)
    return _path(value.get("path"), document, (*at, "path")), revision


def _path(value: Any, document: Document, at: At) -> str:
    if not isinstance(value, str) or not value:
        raise PruneError(f"must be a folder or a Hub id, not {value!r}", where=document.where(at))
    return value


def _spelt(value: str) -> tuple[str, str | None]:
    if Path(value).exists():
        return value, None
    path, _, revision = value.partition("@")
    return path, revision or None


def _settings(value: Any, document: Document, at: At) -> Settings:
    if value is None:
        return {}
    found = _mapping(value, document, at)
    for name, setting in found.items():
        _check_setting(setting, document, (*at, name))
    return found


def _check_setting(setting: Any, document: Document, at: At) -> None:
    """A scalar, a gradient (a list of scalars), a {filter, value}, or a list of those."""
    if isinstance(setting, Mapping):
        _known(setting, ("filter", "value"), document, at)
        if not isinstance(setting.get("filter"), (str, type(None))) or setting.get("value") is None:
            raise PruneError("a filter is a text, and has a value", where=document.where(at))
        _check_setting(setting["value"], document, (*at, "value"))
    elif isinstance(setting, list):
        if not setting:
            raise PruneError("an empty list says nothing", where=document.where(at))
        if len({isinstance(entry, Mapping) for entry in setting}) > 1:
            raise PruneError("a list holds either numbers or filters, not both", where=document.where(at))
        for number, entry in enumerate(setting):
            if isinstance(entry, list):
                raise PruneError("a gradient holds numbers", where=document.where((*at, number)))
            _check_setting(entry, document, (*at, number))
    elif setting is None:
        raise PruneError("has no value", where=document.where(at))


def _vocabulary(value: Mapping[str, Any], document: Document) -> Vocabulary:
    source, tokenizer = value.get("tokenizer_source"), value.get("tokenizer")
    if source is not None and tokenizer is not None:
        raise PruneError("give one of tokenizer and tokenizer_source", where=document.where(("tokenizer",), key=True))
    if tokenizer is None:
        return Vocabulary(_tokens_of(source, document, ("tokenizer_source",)))
    at: At = ("tokenizer",)
    _known(tokenizer, ("source", "tokens", "pad_to_multiple_of"), document, at)
    tokens = _mapping(tokenizer.get("tokens") or {}, document, (*at, "tokens"))
    multiple = tokenizer.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise PruneError("must be a whole number at least 1", where=document.where((*at, "pad_to_multiple_of")))
    return Vocabulary(
        _tokens_of(tokenizer.get("source", "union"), document, (*at, "source")),
        {token: _token(entry, document, (*at, "tokens", token)) for token, entry in tokens.items()},
        multiple or 1,
    )


def _tokens_of(value: Any, document: Document, at: At) -> Literal["union", "base"] | Reference | None:
    return value if value in ("union", "base", None) else _reference(value, document, at)


def _token(value: Any, document: Document, at: At) -> Token:
    _known(value, ("source", "force"), document, at)
    source, force = value.get("source"), _optional(value, "force", document, _truth, at) or False
    if isinstance(source, Mapping) and source.get("kind") == "zero":
        return Token(None, zero=True, force=force)
    if isinstance(source, Mapping) and source.get("kind") == "model_token":
        _known(source, ("kind", "model", "token", "token_id"), document, (*at, "source"))
        if (source.get("token") is None) == (source.get("token_id") is None):
            raise PruneError("give one of token and token_id", where=document.where((*at, "source")))
        inside: At = (*at, "source")
        return Token(
            _reference(source.get("model"), document, (*inside, "model")),
            _optional(source, "token_id", document, _whole, inside),
            _optional(source, "token", document, _text, inside),
            force=force,
        )
    if source is None:
        return Token(None, force=force)
    return Token(_reference(source, document, (*at, "source")), force=force)


def _dtype(value: Any, document: Document, at: At) -> Dtype | None:
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and name not in DTYPES:
        raise unknown(at[0] if isinstance(at[0], str) else "dtype", value, DTYPES).at(document.where(at))
    return cast(Dtype | None, name)


def _optional(value: Mapping[str, Any], key: str, document: Document, read_as: Callable[..., Any], at: At = ()) -> Any:
    found = value.get(key)
    return None if found is None else read_as(found, document, (*at, key))


def _text(value: Any, document: Document, at: At) -> str:
    if not isinstance(value, str):
        raise PruneError(f"must be text, not {value!r}", where=document.where(at))
    return value


def _truth(value: Any, document: Document, at: At) -> bool:
    try:
        return truth(value)
    except ValueError as error:
        raise PruneError(f"must be {error}, not {value!r}", where=document.where(at)) from None


def _whole(value: Any, document: Document, at: At) -> int:
    if type(value) is not int:
        raise PruneError(f"must be a whole number, not {value!r}", where=document.where(at))
    return value


def _mapping(value: Any, document: Document, at: At) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PruneError("must be a mapping", where=document.where(at))
    return value


def _known(value: Any, keys: Collection[str], document: Document, at: At) -> None:
    for key in _mapping(value, document, at):
        if key not in keys:
            raise unknown("key", key, keys).at(document.where((*at, key), key=True))
