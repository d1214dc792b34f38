"""A tokenizer as llama.cpp takes it, or why it cannot: byte-level BPE and SentencePiece-like BPE."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import gguf

from prune.errors import PruneError
from prune.exports.llamacpp.pretokenizers import known
from prune.model.model import Model

UNREACHED = -1e6  # score of a token that no merge makes
WHOLE_WORDS = ("llama-bpe", "tekken")  # for which llama.cpp takes a word whole where it is a token
SPACE = "\u2581"  # how SentencePiece writes a space
Type = gguf.TokenType


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and how text becomes them."""

    model: str  # "gpt2" for byte-level BPE, "llama" for SentencePiece's
    pre: str  # what splits text before merges
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)  # byte-level only, best first
    scores: list[float] = field(default_factory=list)  # SentencePiece only, higher merges first
    special: dict[str, int] = field(default_factory=dict)  # bos, eos, unk, pad -> id
    adds: dict[str, bool] = field(default_factory=dict)  # bos, eos -> whether every text gets one
    prefix: bool | None = None  # whether a space is put before text
    template: str | list[dict[str, str]] | None = None  # chat template
    notes: tuple[str, ...] = ()


def vocabulary(model: Model) -> Vocabulary:
    """The vocabulary of a model's tokenizer, one token for each row of its embedding.

    Raises PruneError for a tokenizer that llama.cpp would read otherwise.
    """
    tokenizer = model.tokenizer()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(f"{type(tokenizer).__name__} has no fast form")
    form = json.loads(backend.to_str())
    kind = form["model"]["type"]
    if kind != "BPE":
        raise _refused(f"it is {kind}, and what is carried is BPE")
    rows = model.tensors.info["model.embed_tokens.weight"].shape[0]
    made = _sentencepiece(form, rows) if form["model"].get("byte_fallback") or _metaspace(form) else _bytes(form, rows)
    adds, odd = _added(tokenizer)
    return replace(
        made,
        special=_special(model, tokenizer, rows),
        adds=adds,
        template=_template(tokenizer),
        notes=(*made.notes, *odd, *_flags(form)),
    )


def _refused(reason: str) -> PruneError:
    return PruneError(f"gguf cannot carry this tokenizer: {reason}", where="format")


def _bytes(form: dict[str, Any], rows: int) -> Vocabulary:
    """Byte-level BPE: merges in order, and a name for the way text is split first."""
    notes = []
    normalizer = form["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(f"llama.cpp has no normalizer {normalizer['type']} for byte-level BPE")
    if normalizer is not None:
        notes.append("llama.cpp does not compose characters (NFC): text that is not composed gives other tokens")
    pre = known(form["pre_tokenizer"])
    if pre is None:
        raise _refused("its pre-tokenizer is none that llama.cpp has a name for here")
    if any(piece.get("add_prefix_space") for piece in _pieces(form["pre_tokenizer"]) if piece["type"] == "ByteLevel"):
        raise _refused("llama.cpp puts no space before the text (add_prefix_space)")
    if form["model"].get("ignore_merges") and pre not in WHOLE_WORDS:
        notes.append("llama.cpp merges words here that the tokenizer takes whole (ignore_merges)")
    tokens, types = _tokens(form, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in form["model"]["merges"]]
    return Vocabulary("gpt2", pre, tokens, types, merges=merges, notes=tuple(notes))


def _sentencepiece(form: dict[str, Any], rows: int) -> Vocabulary:
    """SentencePiece-like BPE: llama.cpp joins the pair whose token scores highest, so ranks become scores."""
    prefix = _prefix(form)
    tokens, types = _tokens(form, rows)
    scores = [UNREACHED] * rows
    ids = form["model"]["vocab"]
    for rank, pair in reversed(list(enumerate(form["model"]["merges"]))):  # the best merge of a token is seen last
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        scores[ids[left + right]] = float(-rank)
    notes = []
    if Type.BYTE not in types:
        notes.append("the vocabulary has no byte tokens: llama.cpp aborts on characters it does not know")
    if _splits_at_spaces(form) and any(SPACE in token.lstrip(SPACE) for token in form["model"]["vocab"]):
        notes.append("tokens with a space inside are reached by llama.cpp, and not by the tokenizer")
    if any(piece.get("prepend_scheme") == "first" for piece in _pieces(form["pre_tokenizer"])):
        notes.append("llama.cpp also puts a space after special tokens, the tokenizer only before the text")
    return Vocabulary("llama", "default", tokens, types, scores=scores, prefix=prefix, notes=tuple(notes))


def _pieces(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    if step is None:
        return []
    return [*step.get("normalizers", []), *step.get("pretokenizers", [])] if step["type"] == "Sequence" else [step]


def _metaspace(form: dict[str, Any]) -> bool:
    return any(piece["type"] == "Metaspace" for piece in _pieces(form["pre_tokenizer"]))


def _splits_at_spaces(form: dict[str, Any]) -> bool:
    return any(piece["type"] == "Metaspace" and piece.get("split", True) for piece in _pieces(form["pre_tokenizer"]))


def _prefix(form: dict[str, Any]) -> bool:
    """Whether a space is put before the text. Raises PruneError for steps that llama.cpp does not take."""
    prefix, replaces = False, False
    for piece in _pieces(form["normalizer"]) + _pieces(form["pre_tokenizer"]):
        kind = piece["type"]
        if kind == "Prepend" and piece["prepend"] == SPACE:
            prefix = True
        elif kind == "Replace" and piece["pattern"] == {"String": " "} and piece["content"] == SPACE:
            replaces = True
        elif kind == "Metaspace" and piece["replacement"] == SPACE:
            prefix, replaces = prefix or piece.get("prepend_scheme", "always") != "never", True
        elif not (kind == "Split" and piece["pattern"] == {"String": " "} and replaces):  # no space is left to split at
            raise _refused(f"llama.cpp has no {kind} in a SentencePiece vocabulary")
    if not replaces:
        raise _refused("its spaces are not written as SentencePiece does")
    return prefix


def _tokens(form: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of every token; rows of the embedding that no token has are named and marked unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [int(Type.UNUSED)] * rows
    entries = {token: (row, Type.NORMAL) for token, row in form["model"]["vocab"].items()}
    if form["model"].get("byte_fallback"):
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        entries |= {name: (entries[name][0], Type.BYTE) for name in names if name in entries}
    for added in form["added_tokens"]:
        entries[added["content"]] = (added["id"], Type.CONTROL if added["special"] else Type.USER_DEFINED)
    unknown = form["model"].get("unk_token")
    if unknown in entries:
        entries[unknown] = (entries[unknown][0], Type.UNKNOWN)
    beyond = [token for token, row in form["model"]["vocab"].items() if row >= rows]
    if beyond:
        raise _refused(f"token {beyond[0]!r} has no row in the embedding, which has {rows}")
    for token, (row, kind) in entries.items():
        if row < rows:  # tokenizers add some that the model never saw
            tokens[row], types[row] = token, int(kind)
    return tokens, types


def _special(model: Model, tokenizer: Any, rows: int) -> dict[str, int]:
    """The ids that llama.cpp gives a meaning: the tokenizer's, else the config's first."""
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        stated = getattr(model.config, f"{name}_token_id", None)
        row = getattr(tokenizer, f"{name}_token_id", None)
        row = stated if row is None else row
        row = row[0] if isinstance(row, list) and row else row
        if isinstance(row, int) and 0 <= row < rows:
            found[name] = row
    return found


def _added(tokenizer: Any) -> tuple[dict[str, bool], list[str]]:
    """Whether every text gets a first and a last token; and a note where it gets others."""
    bare, full = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    starts = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
    before, after = (full[: starts[0]], full[starts[0] + len(bare) :]) if starts else (full, [])
    adds = {"bos": before == [tokenizer.bos_token_id], "eos": after == [tokenizer.eos_token_id]}
    odd = [row for row in (*before, *after) if row not in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
    if odd or len(before) > 1 or len(after) > 1 or not starts:
        return adds, [f"the tokenizer puts tokens around a text that llama.cpp does not ({full} for 'a')"]
    return adds, []


def _template(tokenizer: Any) -> str | list[dict[str, str]] | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    found: str | None = template
    return found


def _flags(form: dict[str, Any]) -> list[str]:
    odd = [a["content"] for a in form["added_tokens"] if a["lstrip"] or a["rstrip"] or a["single_word"]]
    return [f"llama.cpp keeps the spaces beside {', '.join(odd[:3])}, which the tokenizer takes away"] if odd else []


def state(writer: gguf.GGUFWriter, found: Vocabulary) -> None:
    """Add a vocabulary to a file."""
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.scores:
        writer.add_token_scores(found.scores)
    if found.prefix is not None:
        writer.add_add_space_prefix(found.prefix)
    for name, row in found.special.items():
        getattr(writer, f"add_{name}_token_id")(row)
    writer.add_add_bos_token(found.adds["bos"])
    writer.add_add_eos_token(found.adds["eos"])
    if found.template is not None:
        writer.add_chat_template(found.template)
