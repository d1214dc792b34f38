"""The declared groups of MLPs and of attention with as many key-value heads as heads are those that a tracer finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch_pruning
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model.groups import Group, groups
from prune.model.open import open as open_model
from tests import zoo

TRACED = ("bert", "deit", "distilbert", "electra", "gemma", "granite", "llama", "opt", "qwen2", "roberta", "smollm3")
TRACED += ("starcoder2", "vit", "mistral", "qwen3", "gemma2", "gemma3_text", "seed_oss", "phi3", "qwen2_moe")
NOT_TRACED = {  # the families that the tracer cannot be asked about, and why
    "bloom": "its heads are refused, since positions follow from their numbers",
    "gpt2": "the tracer does not know its transposed linears",
    "gpt_neox": "the tracer takes a head's query, key and value rows for separate units",
    "mixtral": "experts are stacked parameters, which the tracer does not know",
    "olmo2": "the tracer does not follow the norm over all heads",
    "olmoe": "the tracer does not follow the norm over all heads",
    "qwen3_moe": "experts are stacked parameters, which the tracer does not know",
    "t5": "its heads are refused, since one position bias serves all layers",
}
Found = set[tuple[str, int, int]]  # parameter's module, dim of its weight, position


class _Plain(nn.Module):
    """A forward that returns a tensor and nothing else, as the tracer wants it."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, inputs: Tensor) -> Tensor:
        cache = {"use_cache": False} if hasattr(self.model, "generate") else {}
        found: Tensor = self.model(**{self.name: inputs}, **cache).logits
        return found


def _traced(graph: torch_pruning.DependencyGraph, module: nn.Module, rows: list[int]) -> Found:
    """What must go along with some outputs of a linear."""
    found = set()
    for dependency, positions in graph.get_pruning_group(module, torch_pruning.prune_linear_out_channels, idxs=rows):
        if isinstance(dependency.target.module, nn.Linear):
            dim = 1 if "in_channels" in dependency.handler.__name__ else 0
            name = dependency.target.name.split(" ")[0].removeprefix("model.")
            found |= {(name, dim, position) for position in positions}
    return found


def _declared(group: Group, unit: int) -> Found:
    weights = (piece for piece in group.slices if piece.name.endswith(".weight"))
    return {(p.name.removesuffix(".weight"), p.dim, i) for p in weights for i in p.index[unit].tolist()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TRACED)
def test_declared_groups_are_those_a_tracer_finds(model_type: str) -> None:
    changes = dict(zoo.CHANGES.get(model_type, zoo.COMMON))
    if "num_key_value_heads" in changes:  # tracing grouped heads does not end
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    config = CONFIG_MAPPING[model_type](**changes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    module = getattr(transformers, type(zoo.module(model_type)).__name__)(config).eval()
    name, inputs = next(iter(zoo.batch(model_type).items()))
    graph = torch_pruning.DependencyGraph().build_dependency(_Plain(module, name), example_inputs=inputs)
    model = open_model(module)
    for kind in ("channels", "heads"):
        group = groups(model, kind)[1]
        first = next(piece for piece in group.slices if piece.role == "producer")
        for unit in (0, group.units - 1):
            traced = _traced(graph, module.get_submodule(first.name.rsplit(".", 1)[0]), first.index[unit].tolist())
            assert traced == _declared(group, unit), kind


def test_every_family_is_compared_or_named() -> None:
    assert {*TRACED, *NOT_TRACED} == set(zoo.FAMILIES)
    assert not set(TRACED) & set(NOT_TRACED)
