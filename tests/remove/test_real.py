"""Trained networks keep what they can do, on real checkpoints where they lie beside the project; skipped elsewhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prune.model.groups import groups
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.save import load
from prune.model.walk import Batch, logits
from prune.remove import traced
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.prove import prove
from prune.remove.score import score
from prune.remove.traced_score import recalibrate
from prune.remove.traced_score import score as traced_score

SEEDS = range(3)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def without_channels(model: Model, data: list[Batch], ratio: float, criterion: str, **options: int) -> Model:
    found = groups(model, "channels")
    plan = choose(model, found, score(model, found, data, criterion=criterion, **options), ratio=ratio)
    small = cut(model, plan)
    prove(model, plan, small, data[0])
    return small


def sorting() -> tuple[Batch, Tensor]:
    """All 729 inputs followed by all but the last of their sorted digits; and what comes next at each place."""
    digits = torch.tensor(list(itertools.product(range(3), repeat=6)))
    ordered = digits.sort(dim=1).values
    return {"input_ids": torch.cat([digits, ordered[:, :-1]], dim=1)}, ordered


def test_a_network_that_sorts_still_sorts(fixtures_folder: Path) -> None:
    model = open_model(fixtures_folder / "models" / "gpt2-nano-sort")
    batch, ordered = sorting()

    def share(cutting: Model) -> float:
        said = next(iter(logits(cutting, [batch])))[:, 5:].argmax(-1)
        return float((said == ordered).all(dim=1).float().mean())

    assert share(model) == 1.0
    found = {c: share(without_channels(model, [batch], 0.25, c)) for c in ("wanda", "magnitude")}
    by_chance = sum(share(without_channels(model, [batch], 0.25, "random", seed=s)) for s in SEEDS) / len(SEEDS)
    print("gpt2-nano-sort, 25 % of channels:", found, "random:", by_chance)
    assert found["wanda"] == 1.0
    assert found["wanda"] >= by_chance


def test_a_korean_classifier_keeps_its_accuracy(fixtures_folder: Path) -> None:
    model = open_model(fixtures_folder / "models" / "ko-nsmc-bert-tiny")
    lines = (fixtures_folder / "text" / "korean-reviews.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[-1500:]]
    tokenize = model.tokenizer()

    def batch(some: list[dict[str, str]]) -> Batch:
        return dict(
            tokenize([row["text"] for row in some], padding=True, truncation=True, max_length=96, return_tensors="pt")
        )

    labels = torch.tensor([int(row["label"]) for row in rows[200:]])
    held_out = batch(rows[200:])

    def accuracy(cutting: Model) -> float:
        with torch.no_grad():
            said = load(cutting)(**held_out).logits.argmax(-1)
        return float((said == labels).float().mean())

    calibration = [batch(rows[:100]), batch(rows[100:200])]
    dense, small = accuracy(model), without_channels(model, calibration, 0.25, "wanda")
    others = [without_channels(model, calibration, 0.25, "random", seed=seed) for seed in SEEDS]
    wanda, chance = accuracy(small), [accuracy(other) for other in others]
    print(f"ko-nsmc-bert-tiny, 25 % of channels: dense {dense:.4f} wanda {wanda:.4f} random {chance}")
    assert wanda >= dense - 0.01
    assert wanda > sum(chance) / len(chance)
    # Its channels hardly move its accuracy, whichever go; what it says moves less with Wanda's than with any drawn.
    moved = [divergence(other, model, [held_out]) for other in others]
    print(f"KL divergence: wanda {divergence(small, model, [held_out]):.5f} random {moved}")
    assert divergence(small, model, [held_out]) < min(moved)


class Shortened(nn.Module):
    """Every second pixel, and zeros for the channels that are new (He et al.'s option A)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.new = (after - before) // 2

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pad(image[:, :, ::2, ::2], (0, 0, 0, 0, self.new, self.new))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = Shortened(before, after) if stride > 1 else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(image)).relu()))
        return (inner + self.shortcut(image)).relu()


class CifarResNet(nn.Module):
    """The three-stage network for 32 x 32 images, 6 n + 2 layers deep."""

    def __init__(self, depth: int):
        super().__init__()
        count = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(count)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(count - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(count - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        deep = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(image)).relu())))
        return self.linear(deep.mean((2, 3)))


@cache
def images(folder: Path) -> tuple[Tensor, Tensor]:
    found = np.load(folder / "images" / "cifar10-4000.npz")
    pixels = torch.from_numpy(found["x"]).permute(0, 3, 1, 2).float() / 255
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / spread[:, None, None], torch.from_numpy(found["y"]).long()


@pytest.mark.parametrize(("depth", "points"), [(20, 0.12), (56, 0.10)])
def test_residual_networks_keep_their_accuracy(fixtures_folder: Path, depth: int, points: float) -> None:
    """A quarter of the channels goes; batch norms are measured anew, and nothing is trained."""
    module = CifarResNet(depth)
    state = load_file(fixtures_folder / "models" / "resnet-cifar10" / f"resnet{depth}.safetensors")
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    module.eval()
    pixels, labels = images(fixtures_folder)
    few = [(pixels[i : i + 8], labels[i : i + 8]) for i in range(0, 256, 8)]
    many = [(pixels[i : i + 125], labels[i : i + 125]) for i in range(0, 1000, 125)]
    held_out = slice(1000, 1600)
    network = traced.trace(module, pixels[:1])

    def accuracy(cutting: nn.Module) -> float:
        with torch.no_grad():
            return float((cutting(pixels[held_out]).argmax(-1) == labels[held_out]).float().mean())

    def after(criterion: str, **options: int | Callable[..., Tensor]) -> float:
        scores = traced_score(network, few, criterion=criterion, **options)  # type: ignore[arg-type]
        plan = choose(network, network.groups, scores, ratio=0.25)  # type: ignore[arg-type]
        return accuracy(recalibrate(traced.cut(network, plan), many))

    dense, best = accuracy(module), after("taylor", loss=nn.functional.cross_entropy)
    chance = (after("random", seed=0) + after("random", seed=1)) / 2
    print(f"resnet{depth}, 25 % of channels: dense {dense:.3f} taylor {best:.3f} random {chance:.3f}")
    assert best >= dense - points
    assert best > chance


def test_four_equal_experts_lose_nothing_when_two_go(fixtures_folder: Path) -> None:
    model = open_model(fixtures_folder / "models" / "stories260K-as-mixtral-upcycled4")
    batch = {"input_ids": torch.randint(3, 500, (4, 64), generator=torch.Generator().manual_seed(0))}
    before = next(iter(logits(model, [batch])))
    for criterion in ("reap", "frequency"):
        found = groups(model, "experts")
        plan = choose(model, found, score(model, found, [batch], criterion=criterion), ratio=0.5)
        small = cut(model, plan)
        prove(model, plan, small, batch)
        assert small.config.num_local_experts == 2
        after = next(iter(logits(small, [batch])))
        assert (before - after).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("name", ["stories260K-as-phi3", "stories260K-as-mixtral-upcycled4", "vit-tiny-cifar10"])
def test_real_checkpoints_walk_and_cut(fixtures_folder: Path, name: str) -> None:
    model = open_model(fixtures_folder / "models" / name)
    batch: Batch = {"input_ids": torch.randint(3, 500, (2, 32), generator=torch.Generator().manual_seed(0))}
    if "vit" in name:
        batch = {"pixel_values": images(fixtures_folder)[0][:4]}
    with torch.no_grad():
        expected = load(model)(**batch).logits
    assert torch.allclose(next(iter(logits(model, [batch]))), expected, atol=1e-4)
    for kind in ("heads", "channels"):
        found = groups(model, kind)
        plan = choose(model, found, score(model, found, [batch], criterion="wanda"), ratio=0.25)
        prove(model, plan, cut(model, plan), batch)
