"""Whose tokens a merged model has, and the embeddings of every input put in their order.

Models that give tokens different numbers cannot be merged row by row: that is refused, or the rows are moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging.config import Config, Reference
from prune.merging.inputs import folder as folder_of
from prune.model import skeleton
from prune.model.companions import content
from prune.model.model import Model
from prune.model.open import TOKENIZER
from prune.model.open import tokenizer as open_tokenizer
from prune.model.tensors import Part

Models = Mapping[Reference, Model]
SHOWN = 3  # tokens named in a refusal
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Row:
    """Where a token's embedding comes from in models that lack it: rows of models, averaged; none are zero."""

    of: tuple[tuple[Reference, int], ...] = ()
    forced: bool = False  # in every model


@dataclass(frozen=True)
class Alignment:
    """The merged vocabulary, and how every model's rows become its rows.

    rows: model -> the old row of each new one, -1 where it has none (tokens,).
    missing: new row -> where it comes from instead.
    size: rows in all; those past the tokens are the mean of the others.
    names: the tensors with a row for each token.
    special: what the config's numbers of special tokens must become, where the tokenizer gives them others.
    warnings: a line for what the config leaves open.
    """

    models: Models
    rows: Mapping[Reference, Tensor]
    missing: Mapping[int, Row]
    size: int
    names: frozenset[str]
    special: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return (self.size, *before[1:])

    def parts(self, reference: Reference, name: str) -> Part:
        """The aligned tensor of one model, for reading in parts."""
        entries = self.tensor(reference, name).reshape(-1)
        return lambda start, stop: entries[start:stop]

    def tensor(self, reference: Reference, name: str) -> Tensor:
        """One model's rows in the merged order (size, ...)."""
        old, rows = self.models[reference].tensors.read(name), self.rows[reference]
        new = old.new_zeros((self.size, *old.shape[1:]))
        there = rows >= 0
        new[: len(rows)][there] = old[rows[there]]
        for token, row in self.missing.items():
            if row.forced or not there[token]:
                found = [self._row(other, name, number).float() for other, number in row.of]
                new[token] = torch.stack(found).mean(dim=0) if found else 0
        if self.size > len(rows):
            new[len(rows) :] = new[: len(rows)].float().mean(dim=0)
        return new

    def _row(self, reference: Reference, name: str, number: int) -> Tensor:
        tensors = self.models[reference].tensors
        shape = tensors.info[name].shape
        width = prod(shape[1:])
        return tensors.parts(name)(number * width, (number + 1) * width).reshape(shape[1:])


class Files(dict[str, Path]):
    """Files in a temporary folder that lives as long as they are referred to."""

    def __init__(self, folder: TemporaryDirectory[str], files: Mapping[str, Path]):
        super().__init__(files)
        self.folder = folder


def agree(config: Config, models: Models) -> None:
    """PruneError where two models that are merged row by row give different tokens one number."""
    known = [(reference, model) for reference, model in models.items() if _has_tokenizer(model)]
    if len(known) < 2 or len({_bytes(model) for _, model in known}) == 1:
        return
    (first, model), *others = known
    own = vocabulary_of(model)
    for other, another in others:
        theirs = vocabulary_of(another)
        if own != theirs:
            raise PruneError(
                f"{first} and {other} have different vocabularies ({len(own)} and {len(theirs)} tokens;"
                f" {_difference(own, theirs)}), so their embeddings would be mixed up; say whose to take with"
                " tokenizer_source: union, or base",
                where=config.where(config.place(other)),
            )


def _difference(own: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """The first few numbers that mean different tokens."""
    mine, other = ({number: token for token, number in vocabulary.items()} for vocabulary in (own, theirs))
    odd = [number for number in sorted({*mine, *other}) if mine.get(number) != other.get(number)][:SHOWN]
    return "the first that differ: " + ", ".join(f"{n} is {mine.get(n)!r} and {other.get(n)!r}" for n in odd)


def _has_tokenizer(model: Model) -> bool:
    return any(name.startswith("tokenizer") for name in model.files)


def _bytes(model: Model) -> bytes:
    """What tells one fast tokenizer from another without loading either."""
    path = model.files.get("tokenizer.json")
    return path.read_bytes() if path else str(id(model)).encode()


def vocabulary_of(model: Model) -> dict[str, int]:
    """Token -> number, those that the model has an embedding of."""
    return _embedded(model, model.tokenizer())


def _embedded(model: Model, tokenizer: Any) -> dict[str, int]:
    rows = _count(model)
    return {token: number for token, number in tokenizer.get_vocab().items() if number < rows}


def _count(model: Model) -> int:
    """How many embeddings a model has."""
    count: int = model.config.get_text_config().vocab_size
    return count


def align(config: Config, models: Models) -> tuple[Alignment, Files] | None:
    """The vocabulary that a config asks for and the tokenizer's files; None where it leaves things as they are."""
    wanted = config.vocabulary
    if wanted.source is None:
        return None
    first = config.base or config.slices[0].sources[0].model
    vocabularies = {
        reference: _embedded(model, (model if _has_tokenizer(model) else models[first]).tokenizer())
        for reference, model in models.items()
    }
    tokenizer = _tokenizer(config, models, first)
    for token in wanted.tokens:
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens(token)
    tokens = tokenizer.get_vocab()
    count = max(tokens.values()) + 1
    rows = {reference: torch.full((count,), -1, dtype=torch.long) for reference in models}
    for reference, own in vocabularies.items():
        for token, number in tokens.items():
            rows[reference][number] = own.get(token, -1)
    missing = {
        number: row
        for token, number in tokens.items()
        if (row := _row(token, number, config, models, rows, vocabularies))
    }
    size = -(-count // wanted.multiple_of) * wanted.multiple_of
    old = _old_numbers(config, models[first])
    special = {} if old is None else _special(models[first].config.to_dict(), old, tokenizer)
    warnings = _unowned(config, {number: token for token, number in tokens.items()}, missing)
    aligned = Alignment(models, rows, missing, size, with_rows(models[first]), special, warnings)
    return aligned, _saved(tokenizer, models[first], old)


def _unowned(config: Config, tokens: Mapping[int, str], missing: Mapping[int, Row]) -> tuple[str, ...]:
    """A line for tokens that no model has an embedding of, and that the config does not say to be zero."""
    given = config.vocabulary.tokens
    found = [
        token
        for number, row in sorted(missing.items())
        if not row.of and not ((token := tokens[number]) in given and given[token].zero)
    ]
    if not found:
        return ()
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    shown = ", ".join(map(repr, found[:SHOWN])) + more
    where = config.where(("tokenizer", "tokens", found[0]))
    return (f"{where}: no model has an embedding of {shown}, so it is zero; give its source under tokens",)


def _old_numbers(config: Config, donor: Model) -> dict[int, str] | None:
    """The donor's tokens by the numbers that its config has them under; None where those stay as they are."""
    if not isinstance(config.vocabulary.source, Reference):
        return None
    vocabulary = donor.tokenizer().get_vocab() if _has_tokenizer(donor) else {}
    return {number: token for token, number in vocabulary.items()}


def _special(values: Mapping[str, Any], old: Mapping[int, str], tokenizer: Any) -> dict[str, Any]:
    """The numbers of special tokens that a tokenizer gives otherwise than a config: its own, else the same tokens'."""
    new, found = tokenizer.get_vocab(), {}
    for key in SPECIAL:
        if key not in values:
            continue
        before, named = values[key], getattr(tokenizer, key, None)
        numbers = before if isinstance(before, list) else [before]
        after = [] if named is None else [named]
        after += [new[token] for number in numbers if (token := old.get(number)) in new]
        wanted = sorted(set(after)) if isinstance(before, list) else next(iter(after), None)
        if wanted != (sorted(before) if isinstance(before, list) else before):
            found[key] = wanted
    return found


def _tokenizer(config: Config, models: Models, first: Reference) -> Any:
    source = config.vocabulary.source
    if isinstance(source, Reference):
        return models[source].tokenizer() if source in models else _of_another(config, source)
    tokenizer = models[first].tokenizer()
    if source == "union":
        _extend(tokenizer, [models[reference] for reference in config.references if reference != first])
    return tokenizer


def _of_another(config: Config, source: Reference) -> Any:
    """The tokenizer of a folder or a Hub id that is none of the models."""
    try:
        return open_tokenizer(folder_of(source.model, config), revision=source.revision)
    except PruneError as error:
        given = ("tokenizer_source",) if "tokenizer_source" in config.document.value else ("tokenizer", "source")
        raise PruneError(str(error), where=config.where(given)) from None


def _extend(tokenizer: Any, others: Iterable[Model]) -> None:
    """Tokens of the others that this one lacks, at its end; special ones stay special."""
    for model in others:
        if not _has_tokenizer(model):
            continue
        other = model.tokenizer()
        rows = _count(model)
        special = {info.content: info for number, info in other.added_tokens_decoder.items() if number < rows}
        known = tokenizer.get_vocab()
        plain = sorted((number, token) for token, number in other.get_vocab().items() if number < rows)
        tokenizer.add_tokens([token for _, token in plain if token not in known and token not in special])
        tokenizer.add_tokens([info for token, info in special.items() if token not in known])


def _row(
    token: str,
    number: int,
    config: Config,
    models: Models,
    rows: Mapping[Reference, Tensor],
    vocabularies: Mapping[Reference, Mapping[str, int]],
) -> Row | None:
    """Where a token's row comes from: as the config says, else the base's, the only owner's, or the owners' mean."""
    given, where = config.vocabulary.tokens.get(token), config.where(("tokenizer", "tokens", token))
    if given and (given.source or given.zero):
        if given.zero or given.source is None:
            return Row((), given.force)
        if given.source not in rows:
            raise PruneError(f"{given.source} is not among the models", where=where)
        own = vocabularies[given.source].get(given.token or token) if given.id is None else given.id
        if own is None:
            raise PruneError(f"{given.source} has no token {given.token or token!r}", where=where)
        count = _count(models[given.source])
        if not 0 <= own < count:
            raise PruneError(f"{given.source} has the tokens 0 to {count - 1}, and no {own}", where=where)
        return Row(((given.source, own),), given.force)
    owners = [(reference, int(own[number])) for reference, own in rows.items() if own[number] >= 0]
    if len(owners) == len(rows):
        return None
    base = [owner for owner in owners if owner[0] == config.base]
    return Row(tuple(base or owners))


def with_rows(model: Model) -> frozenset[str]:
    """The tensors with a row for each token: the embeddings on both ends and the biases of the second.

    Where the module has one of them under two names, it counts under both.
    """
    root = skeleton.skeleton(model)
    ends = [module for module in (root.get_input_embeddings(), root.get_output_embeddings()) if module is not None]
    found = set()
    for path, module in root.named_modules():
        if any(module is end for end in ends):
            found |= {f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)}
    twins = {**(root._tied_weights_keys or {}), **skeleton.tied(root)}
    found |= {twins[name] for name in found if name in twins}
    return frozenset(name for name in found if name in model.tensors.info)


def _saved(tokenizer: Any, first: Model, old: Mapping[int, str] | None) -> Files:
    """The tokenizer's files in the place of the donor's, and its generation config with the tokenizer's numbers."""
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="prune-")
    tokenizer.save_pretrained(folder.name)
    if old is not None and GENERATION in first.files:
        values = json.loads(content(first.files[GENERATION]))
        if moved := _special(values, old, tokenizer):
            Path(folder.name, GENERATION).write_text(json.dumps(values | moved, indent=2) + "\n", encoding="utf-8")
    made = {path.name: path for path in sorted(Path(folder.name).iterdir()) if path.is_file()}
    kept = {name: path for name, path in first.files.items() if not name.startswith(TOKENIZER)}
    return Files(folder, {**kept, **made})


def with_template(config: Config, models: Models, files: Mapping[str, Path]) -> Mapping[str, Path]:
    """The files with the chat template that a config asks for: written out, a known format's, or `auto`."""
    wanted = config.chat_template
    if wanted is None:
        return files
    if not any(name.startswith("tokenizer") for name in files):
        raise PruneError("the merged model has no tokenizer to give it to", where=config.where(("chat_template",)))
    text = _template(config, models)
    if text is None:
        return files
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="prune-")
    place = Path(folder.name, "chat_template.jinja")
    place.write_text(text, encoding="utf-8")
    made = Files(folder, {**files, place.name: place})
    made.before = files  # type: ignore[attr-defined]  # their folder, too, must live on
    return made


def _template(config: Config, models: Models) -> str | None:
    wanted = config.chat_template
    assert wanted is not None
    if wanted == "auto":
        found = [text for model in models.values() if (text := _template_of(model))]
        return max(found, key=found.count) if found else None
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    if "{" not in wanted:
        known = ", ".join(sorted(["auto", *TEMPLATES]))
        raise PruneError(
            f"is no template: write one in Jinja, or one of {known}", where=config.where(("chat_template",))
        )
    return wanted


def _template_of(model: Model) -> str | None:
    if path := model.files.get("chat_template.jinja"):
        return path.read_text(encoding="utf-8").strip()
    if path := model.files.get("tokenizer_config.json"):
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        return template.strip() if isinstance(template, str) else None
    return None


TEMPLATES = {  # formats that chat models share, by the names that configs use
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
        "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% if loop.first %}[|system|][|endofturn|]{{ '\n' }}{% endif %}[|user|]{{ message['content'] }}{{ '\n' }}"
        "{% else %}{% if loop.first and message['role'] == 'assistant' %}[|system|][|endofturn|]{{ '\n' }}{% endif %}"
        "[|{{ message['role'] }}|]{{ message['content'] }}[|endofturn|]{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}
