"""Laws of traced networks: residual, depthwise, concatenating and attending ones, saved and narrowed back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from prune import files
from prune.errors import PruneError
from prune.remove import traced_save
from prune.remove.choose import choose
from prune.remove.narrow import narrow
from prune.remove.traced import Traced, cut, difference, trace, within
from prune.remove.traced_save import save
from prune.remove.traced_score import score


class Residual(nn.Module):
    """Two blocks with a shortcut, one of them strided, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.norm = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.two, self.norm2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.wide = nn.Conv2d(8, 16, 1, stride=2), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image).relu()
        inner = stem + self.norm2(self.two(self.norm(self.one(stem)).relu()))
        return self.head((self.down(inner) + self.wide(inner)).relu().mean((2, 3)))


class Mobile(nn.Module):
    """Expansion, depthwise convolution, projection; then channels put side by side and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.depth, self.act = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.PReLU(12)
        self.project, self.other = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(10 * 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        inner = self.act(self.depth(self.norm(self.expand(image)).relu()))
        both = torch.cat([self.project(inner), self.other(inner)], dim=1)
        return self.head(nn.functional.adaptive_avg_pool2d(both, 2).flatten(1))


class ConvNext(nn.Module):
    """A norm over channels, so that only the channels inside the block can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.depth, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        inner = self.norm(self.depth(stem).permute(0, 2, 3, 1))
        inner = self.scale * self.down(nn.functional.gelu(self.up(inner)))
        return self.head((stem + inner.permute(0, 3, 1, 2)).mean((2, 3)))


class Grouped(nn.Module):
    """Convolutions in groups, which stay whole, on the stream of a residual block whose inner channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spread = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.gather, self.head = nn.Conv2d(16, 8, 1, groups=8), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        stream = self.spread(self.stem(image).relu())
        stream = stream + self.norm(self.grouped(stream)).relu()
        stream = stream + self.two(self.one(stream).relu())
        return self.head(self.gather(stream).relu().mean((2, 3)))


class Published(nn.Module):
    """ResNet as transformers has it, with its logits for an output."""

    def __init__(self) -> None:
        super().__init__()
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5)
        self.model = ResNetForImageClassification(config)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.model(image).logits
        return found


class Stream(nn.Module):
    """The stem's channels are also those of `inner.b`; the tracer names the group by one of them."""

    def __init__(self, after: Callable[[Tensor], object] = lambda output: output) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.inner = nn.Sequential()
        self.inner.a, self.inner.b = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.after = after

    def forward(self, image: Tensor) -> object:
        stem = self.stem(image)
        return self.after(self.head((stem + self.inner.b(self.inner.a(stem).relu())).mean((2, 3))))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NETWORKS = (Residual, Mobile, ConvNext, Grouped, Published)


def made(network: type[nn.Module]) -> nn.Module:
    """With batch norms that have seen something."""
    torch.manual_seed(0)
    module = network()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.running_mean, 0, 0.3)
    return module.eval()


def halved(traced: Traced) -> dict[str, list[int]]:
    return choose(traced, traced.groups, score(traced, criterion="random"), ratio=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", NETWORKS)
def test_masked_equals_sliced_and_the_module_is_left_alone(network: type[nn.Module]) -> None:
    module = made(network)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    traced = trace(module, IMAGE)
    small = cut(traced, halved(traced))  # raises when they differ
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_what_stays_whole_is_said() -> None:
    assert set(trace(made(ConvNext), IMAGE).left_out) >= {"head", "stem"}
    assert "LayerNorm" in trace(made(ConvNext), IMAGE).left_out["stem"]
    assert trace(made(Residual), IMAGE, ignore=["one"]).left_out["one"] == "you asked for it"


def test_transposed_convolutions_stay_whole_and_are_called_so() -> None:
    up = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    traced = trace(up, IMAGE)
    assert [group.name for group in traced.groups] == ["2"]
    assert "transposed convolution" in traced.left_out["0"] and "transposed convolution" in traced.left_out["1"]


def test_convolutions_in_groups_stay_whole() -> None:
    traced = trace(made(Grouped), IMAGE)
    assert [group.name for group in traced.groups] == ["one"]
    small = cut(traced, {"one": [0, 5]})
    assert [(small.get_submodule(n).groups, small.get_submodule(n).in_channels) for n in ("spread", "grouped")] == [
        (8, 8),
        (4, 16),
    ]


@pytest.mark.parametrize("name", ["stem", "inner.b", "inner"])
def test_any_layer_of_a_group_can_be_ignored(name: str) -> None:
    def sizes(traced: Traced) -> set[int]:
        return {group.units for group in traced.groups}

    assert sizes(trace(Stream(), IMAGE)) == {8, 6}
    if name == "inner":  # all that it holds
        with pytest.raises(PruneError, match="you asked for it"):
            trace(Stream(), IMAGE, ignore=[name])
    else:
        assert sizes(trace(Stream(), IMAGE, ignore=[name])) == {6}


def test_unknown_layers_to_ignore_are_refused() -> None:
    with pytest.raises(PruneError, match="did you mean 'stem'"):
        trace(Stream(), IMAGE, ignore=["sten"])


def test_outputs_that_are_not_numbers_never_agree() -> None:
    traced = trace(Stream(), IMAGE)
    small = cut(traced, halved(traced))
    with torch.no_grad():
        small.get_parameter("head.bias").fill_(float("nan"))
    assert difference(traced, halved(traced), small) == float("inf")
    with pytest.raises(PruneError, match="masking and slicing differ"):
        trace(Stream(lambda output: output * float("nan")), IMAGE)


def test_outputs_without_tensors_are_refused() -> None:
    traced = trace(Stream(), IMAGE)
    silent = Traced(Stream(lambda _: {"text": "none"}), traced.example, traced.groups, {})
    with pytest.raises(PruneError, match="holds no tensor"):
        cut(silent, halved(traced))
    with pytest.raises(PruneError, match="holds no tensor"):
        trace(silent.module, IMAGE)


@pytest.mark.parametrize("network", NETWORKS)
def test_removing_nothing_changes_nothing_and_dead_channels_cost_nothing(network: type[nn.Module]) -> None:
    module = made(network)
    traced = trace(module, IMAGE)
    assert torch.equal(cut(traced, {})(IMAGE), module(IMAGE))
    plan = halved(traced)
    with torch.no_grad():
        for group in traced.groups:
            removed = sorted(set(range(group.units)) - set(plan[group.name]))
            for piece in group.consumers:
                module.get_parameter(piece.name).index_fill_(piece.dim, piece.index[removed].reshape(-1), 0)
    assert torch.allclose(cut(traced, plan)(IMAGE), module(IMAGE), atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_saved_networks_narrow_back_into_their_own_class(network: type[nn.Module], tmp_path: Path) -> None:
    traced = trace(made(network), IMAGE)
    small = cut(traced, halved(traced))
    save(small, halved(traced), tmp_path / "small")
    again = narrow(network(), tmp_path / "small").eval()
    assert torch.equal(again(IMAGE), small(IMAGE))
    assert not files.verify(tmp_path / "small")
    numbers = [(getattr(m, "in_channels", 0), getattr(m, "groups", 0)) for m in small.modules()]
    assert numbers == [(getattr(m, "in_channels", 0), getattr(m, "groups", 0)) for m in again.modules()]
    again.train()(IMAGE).sum().backward()


def test_another_network_is_refused(tmp_path: Path) -> None:
    traced = trace(made(Residual), IMAGE)
    save(cut(traced, halved(traced)), {}, tmp_path / "small")
    with pytest.raises(PruneError, match="only in the"):
        narrow(Mobile(), tmp_path / "small")
    smaller = Residual()
    smaller.one = nn.Conv2d(8, 2, 3, bias=False)
    with pytest.raises(PruneError, match="no part of it"):
        narrow(smaller, tmp_path / "small")


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    traced = trace(made(Residual), IMAGE)
    save(cut(traced, halved(traced)), {}, tmp_path / "small", example=IMAGE)
    assert (tmp_path / "small" / "model.onnx").stat().st_size > 1000
    assert not list((tmp_path / "small").glob("*.pt"))


class Two(nn.Module):
    """Two inputs, and outputs in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        inner = (self.one(left) + self.other(right)).relu()
        scores = self.head(inner)
        return {"scores": scores, "sum": scores.sum(1)}


def test_a_graph_takes_several_inputs_and_gives_the_first_output(tmp_path: Path) -> None:
    left, right = torch.randn(2, 4), torch.randn(2, 3)
    traced = trace(Two().eval(), (left, right))
    small = cut(traced, halved(traced))
    save(small, {}, tmp_path / "small", example=(left, right))
    graph = traced_save.open_graph(tmp_path / "small" / "model.onnx")
    found = traced_save.outputs(graph, {"input": left, "input_2": right})["output"]
    assert torch.allclose(found, small(left, right)["scores"], atol=1e-5)
    with pytest.raises(PruneError, match="example: a graph takes tensors"):
        save(small, {}, tmp_path / "other", example=(left, "right"))  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_a_graph_that_computes_something_else_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = traced_save.outputs
    monkeypatch.setattr(
        traced_save, "outputs", lambda *given: {name: 1.01 * tensor for name, tensor in true(*given).items()}
    )
    with pytest.raises(PruneError, match="ONNX graph differs"):
        save(made(Residual), {}, tmp_path / "small", example=IMAGE)
    assert not list(tmp_path.iterdir())


def test_scores_are_their_formulae() -> None:
    module = made(Residual)
    traced = trace(module, IMAGE)
    (group,) = (g for g in traced.groups if g.name == "one")
    target = torch.tensor([1, 2])
    wanda = score(traced, [(IMAGE, target)], criterion="wanda")["one"]
    taylor = score(traced, [(IMAGE, target)], criterion="taylor", loss=nn.functional.cross_entropy)["one"]
    seen: list[Tensor] = []
    module.two.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr]
    nn.functional.cross_entropy(module(IMAGE), target).backward()
    weight = module.two.weight  # type: ignore[union-attr]
    rms = seen[0].square().mean((0, 2, 3)).sqrt()
    assert torch.allclose(wanda, weight.abs().sum((0, 2, 3)) * rms, rtol=1e-4)
    assert torch.allclose(taylor, (weight * weight.grad).sum((0, 2, 3)).abs(), rtol=1e-3, atol=1e-7)
    assert group.units == 12


def test_frozen_networks_are_scored_as_others_and_stay_frozen() -> None:
    module, batches = made(Residual), [(IMAGE, torch.tensor([1, 2]))]
    expected = score(trace(module, IMAGE), batches, criterion="taylor", loss=nn.functional.cross_entropy)
    found = score(
        trace(module.requires_grad_(False), IMAGE), batches, criterion="taylor", loss=nn.functional.cross_entropy
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_weights_that_the_loss_does_not_see_score_zero() -> None:
    traced = trace(Stream(lambda output: (output, 2 * output)), IMAGE)
    traced.module.after = lambda output: output
    traced.module.head.register_forward_hook(lambda _, args, output: output.detach() + args[0].sum())
    found = score(traced, [(IMAGE, None)], criterion="taylor", loss=lambda output, _: output.sum())
    assert found["inner.a"].any()
    assert all(scores.isfinite().all() for scores in found.values())


def test_wrong_plans_and_missing_data_are_refused() -> None:
    traced = trace(made(Residual), IMAGE)
    with pytest.raises(PruneError, match="no such group"):
        cut(traced, {"nowhere": [0]})
    with pytest.raises(PruneError, match="at least one"):
        cut(traced, {"one": []})
    with pytest.raises(PruneError, match="looks at data"):
        score(traced, criterion="wanda")
    with pytest.raises(PruneError, match="needs a loss"):
        score(traced, [(IMAGE, torch.tensor([1, 2]))], criterion="taylor")
    wrong = cut(traced, {"one": list(range(6))})
    assert difference(traced, {"one": list(range(6, 12))}, wrong) > 1e-3


def test_tracing_stands_behind_a_time_limit() -> None:
    start = time.monotonic()
    with pytest.raises(PruneError, match="did not end within"):
        within(0.2, lambda: [time.sleep(0.01) for _ in range(1000)])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("gradients", [True, False], ids=["graph", "checks"])
def test_the_graph_and_the_checks_share_the_limit(gradients: bool) -> None:
    def slow(output: Tensor) -> Tensor:
        for _ in range(200 if torch.is_grad_enabled() == gradients else 0):  # the checks need no gradients
            time.sleep(0.01)
        return output

    module = Stream(slow).train()
    with pytest.raises(PruneError, match="did not end within 1 s"):
        trace(module, IMAGE, seconds=1)
    assert all(part.training for part in module.modules())


def test_networks_that_cannot_be_cut_say_so() -> None:
    with pytest.raises(PruneError, match="no channels"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), IMAGE)
    with pytest.raises(PruneError, match="cannot be traced"):
        trace(made(Residual), torch.randn(2, 5, 8, 8))
