"""The declared groups of MLPs and of attention with as many key-value heads as heads are those that a tracer finds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch_pruning
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model import family as families
from prune.model.groups import KINDS as ALL_KINDS
from prune.model.groups import Group, groups
from prune.model.open import open as open_model
from tests import zoo

KINDS = ("channels", "heads")
OTHER_KINDS = {  # what no tracer is asked about: tests/model/test_families.py holds it to masks and dead units
    "query_heads": "tracing grouped heads does not end",
    "experts": "stacked parameters, which the tracer does not know",
    "layers": "whole tensors, not slices",
    "attention": "whole tensors, not slices",
    "mlp": "whole tensors, not slices",
    "width": "a group that spans the model",
}
STACKED = "experts are stacked parameters, which the tracer does not know"
TRANSPOSED = "the tracer does not know transposed linears"
NORM = "the tracer does not follow the norm over all heads"
EXCEPT: dict[str, dict[str, str]] = {  # family -> kind -> why the tracer cannot be asked
    "bloom": {"heads": "refused: positions follow from a head's number"},
    "gpt2": {"channels": TRANSPOSED, "heads": TRANSPOSED},
    "gpt_neox": {"heads": "the tracer takes a head's query, key and value rows for separate units"},
    "mixtral": {"channels": STACKED},
    "olmo2": {"heads": NORM},
    "olmoe": {"channels": STACKED, "heads": NORM},
    "t5": {"heads": "refused: one position bias serves all layers"},
}
CASES = [(family, kind) for family in zoo.FAMILIES for kind in KINDS if kind not in EXCEPT.get(family, {})]
Found = set[tuple[str, int, int]]  # parameter's module, dim of its weight, position


class _Plain(nn.Module):
    """A forward of one input that returns a tensor and nothing else, as the tracer wants it."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, inputs: Tensor) -> Tensor:
        more = {"use_cache": False} if hasattr(self.model, "generate") else {}
        if self.model.config.is_encoder_decoder:
            more["decoder_input_ids"] = inputs
        found: Tensor = self.model(**{self.name: inputs}, **more).logits
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


@cache
def _graph(model_type: str) -> tuple[nn.Module, torch_pruning.DependencyGraph]:
    """A family's module with a key-value head for every head, and what the tracer makes of it."""
    changes = dict(zoo.CHANGES.get(model_type, zoo.COMMON))
    if "num_key_value_heads" in changes:  # tracing grouped heads does not end
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    config = CONFIG_MAPPING[model_type](**changes)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    module = getattr(transformers, type(zoo.module(model_type)).__name__)(config).eval()
    name, inputs = next(iter(zoo.batch(model_type).items()))
    return module, torch_pruning.DependencyGraph().build_dependency(_Plain(module, name), example_inputs=inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_declared_groups_are_those_a_tracer_finds(model_type: str, kind: str) -> None:
    module, graph = _graph(model_type)
    group = groups(open_model(module), kind)[1]
    first = next(piece for piece in group.slices if piece.role == "producer")
    for unit in (0, group.units - 1):
        traced = _traced(graph, module.get_submodule(first.name.rsplit(".", 1)[0]), first.index[unit].tolist())
        assert traced == _declared(group, unit)


def test_exceptions_are_of_families_and_kinds_there_are() -> None:
    assert set(EXCEPT) <= set(zoo.FAMILIES)
    assert {*KINDS, *OTHER_KINDS} == set(ALL_KINDS)
    for name in zoo.FAMILIES:
        refused = {kind for kind, why in EXCEPT.get(name, {}).items() if why.startswith("refused")}
        assert refused == set(families.of(name).refused) & set(KINDS), name
