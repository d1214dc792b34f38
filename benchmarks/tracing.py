"""How long it takes to trace, score and cut a network as large as ResNet-50, without weights of anybody's.

python benchmarks/tracing.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from prune import networks


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a shortcut (He et al., https://arxiv.org/abs/1512.03385)."""

    def __init__(self, before: int, inner: int, stride: int):
        super().__init__()
        after = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after)
        down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = down if stride > 1 or before != after else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(image)).relu())).relu()
        return (self.bn3(self.conv3(inner)) + self.shortcut(image)).relu()


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks: 25.6 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, before = [], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            inner = 64 * 2**stage
            for number in range(count):
                blocks.append(Bottleneck(before, inner, 2 if stage and not number else 1))
                before = 4 * inner
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(before, 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.blocks(self.pool(self.bn1(self.conv1(image)).relu())).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    module, image = ResNet50().eval(), torch.randn(2, 3, 224, 224)
    before = sum(p.numel() for p in module.parameters())
    assert before == 25_557_032, before
    parts: dict[str, list[float]] = {"trace": [], "score": [], "cut": []}
    for _ in range(repeats):
        start = time.perf_counter()
        network = networks.trace(module, image[:1])
        traced = time.perf_counter()
        scores = networks.score(network, [(image, None)], criterion="wanda")
        scored = time.perf_counter()
        small = networks.cut(network, networks.choose(network, scores, ratio=0.25))
        ends = (traced - start, scored - traced, time.perf_counter() - scored)
        for part, seconds in zip(parts, ends, strict=True):
            parts[part].append(seconds)
    after = sum(p.numel() for p in small.parameters())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(network.groups)} groups")
    print(f"{before:,} parameters -> {after:,} (a quarter of the channels, Wanda)")
    total = [sum(times) for times in zip(*parts.values(), strict=True)]
    for part, times in {**parts, "all": total}.items():
        print(f"{part:6} {statistics.median(times):6.2f} s [{min(times):.2f}, {max(times):.2f}]")


if __name__ == "__main__":
    main()
