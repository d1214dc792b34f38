"""Which of llama.cpp's architectures carries a model, with what sizes and up to what context; or why none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

from prune.errors import PruneError
from prune.exports.llamacpp.architectures import CARRIERS, Architecture
from prune.exports.llamacpp.plain import linears, plain
from prune.exports.llamacpp.rope import Rope, rope
from prune.model.family import PREFIX
from prune.model.model import Model


@dataclass(frozen=True)
class Layer:
    """One layer's sizes as they are written; `channels` are those of one expert where there are experts."""

    heads: int
    kv_heads: int
    channels: int
    experts: int = 0


@dataclass(frozen=True)
class Target:
    """What llama.cpp is told that the model is."""

    architecture: Architecture
    layers: tuple[Layer, ...]
    rope: Rope
    context: int  # tokens
    query_scale: float  # what queries are multiplied by, where the architecture scales scores otherwise
    notes: tuple[str, ...]


def target(model: Model) -> Target:
    """The first architecture that computes the same; reads no weights. Raises PruneError where there is none."""
    kind = model.config.model_type.removeprefix(PREFIX)
    if kind not in CARRIERS or not model.architecture.__name__.endswith("ForCausalLM"):
        named = model.architecture.__name__
        raise PruneError(f"gguf carries causal language models of {', '.join(CARRIERS)}; not {named}")
    reasons = []
    for architecture in CARRIERS[kind]:
        found = _reason(model, architecture)
        if found is None:
            return _target(model, architecture)
        reasons.append(f"as {architecture.name}: {found}")
    raise PruneError(f"gguf cannot carry this {kind}: {'; '.join(reasons)}")


def carried(model: Model, architecture: Architecture) -> Target:
    """The model as this architecture states it. Raises PruneError with what stands in the way; reads no weights."""
    kind = model.config.model_type.removeprefix(PREFIX)
    reason = _reason(model, architecture) if architecture in CARRIERS.get(kind, ()) else "it computes something else"
    if reason:
        raise PruneError(f"{architecture.name} cannot carry this {kind}: {reason}")
    return _target(model, architecture)


def layers(model: Model) -> list[Layer]:
    """Every layer's sizes, from its tensors' shapes; 0 for what a layer lacks."""
    sizes = [model.sizes(layer) for layer in range(model.numbers["layers"])]
    return [
        Layer(own["heads"], own["kv_heads"], own["expert_channels"] or own["channels"], own["experts"]) for own in sizes
    ]


def _target(model: Model, architecture: Architecture) -> Target:
    config, notes = model.config, []
    context = int(config.max_position_embeddings)
    turned = rope(config, architecture, model.numbers["head_dim"])
    if turned.context:
        context = min(context, turned.context)
        notes.append(f"the context is {context} tokens: what lies beyond takes other rotary frequencies")
    window = _window(config)
    if window and not _windows_fit(config, architecture) and window < context:
        context = window
        notes.append(f"the context is the sliding window of {window} tokens, which {architecture.name} does not have")
    scale = turned.scale**2 * _score_scale(model, architecture)
    found = tuple(_written(own, number) for number, own in enumerate(layers(model)))
    return Target(architecture, found, turned, context, scale, tuple(notes))


def _written(own: Layer, number: int) -> Layer:
    """A layer without MLP gets a dead channel, and the first, where it is without attention, a dead head."""
    heads, kv_heads = (1, 1) if not own.heads and number == 0 else (own.heads, own.kv_heads)
    return Layer(heads, kv_heads, max(own.channels, 1), own.experts)


def _reason(model: Model, architecture: Architecture) -> str | None:
    """Why an architecture does not compute the same as the model, or None."""
    return next((reason for rule in _RULES if (reason := rule(model, architecture))), None)


def _of_sizes(model: Model, architecture: Architecture) -> str | None:
    found = layers(model)
    first = found[0]
    if any(own.experts for own in found) and not architecture.experts:
        return "it has no experts"
    if not architecture.by_layer and (len(set(found)) > 1 or not first.heads or not first.channels):
        return "it reads the first layer's sizes for all layers, and these differ"
    wide = first.heads * model.numbers["head_dim"]
    if architecture.square and wide != model.numbers["width"]:
        return f"its attention is as wide as the model ({model.numbers['width']}), not {wide}"
    return None


def _of_tensors(model: Model, architecture: Architecture) -> str | None:
    tensors = plain(model).info
    if architecture.tied and "lm_head.weight" in tensors:
        return "it has no head apart from the embedding"
    biases = linears(name.removesuffix(".bias") for name in tensors if name.endswith(".bias"))
    foreign = sorted(biases - set(architecture.biases))
    return f"it has no place for the bias of {', '.join(foreign)}" if foreign else None


def _of_settings(model: Model, architecture: Architecture) -> str | None:
    config = model.config
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation:
        return f"its activation is {architecture.activation}, not {activation}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks back only"
    capped = getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None)
    return "it caps no logits" if capped and not architecture.numbers else None


def _of_positions(model: Model, architecture: Architecture) -> str | None:
    config, period = model.config, architecture.rope_period
    turned = getattr(config, "no_rope_layers", None)
    if period and turned != [int((i + 1) % period != 0) for i in range(model.numbers["layers"])]:
        return f"it leaves positions out of every {period}th layer, and here of others"
    both = getattr(config, "rope_parameters", {})
    if "sliding_attention" in both:
        local = both["sliding_attention"]
        if not _windows_fit(config, architecture):
            return f"its windows stand in all but every {architecture.window_period}th layer, and here in others"
        if local["rope_type"] != "default" or local["rope_theta"] != 10000.0:
            return "the rotary base of its windowed layers is 10000, without scaling"
    try:
        rope(config, architecture, model.numbers["head_dim"])
    except PruneError as error:
        return error.message
    return None


_RULES: tuple[Callable[[Model, Architecture], str | None], ...] = (
    _of_sizes,
    _of_tensors,
    _of_settings,
    _of_positions,
)


def _window(config: Any) -> int | None:
    """Tokens that the layers with a window look back on, themselves included; None where none has one."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    looks = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
    return int(window) if window and looks else None


def _windows_fit(config: Any, architecture: Architecture) -> bool:
    """Whether the layers with a window are those of the architecture."""
    period, kinds = architecture.window_period, getattr(config, "layer_types", None) or []
    wanted = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(kinds))]
    return bool(period and kinds == wanted) if period else False


def _score_scale(model: Model, architecture: Architecture) -> float:
    """The model's scale of attention scores as a share of the architecture's."""
    scalar = getattr(model.config, "query_pre_attn_scalar", None)
    if scalar is None:
        return 1.0
    numbers = model.numbers
    odd = numbers["layers"] == architecture.odd_scale
    return sqrt((numbers["width"] / numbers["heads"] if odd else numbers["head_dim"]) / scalar)
