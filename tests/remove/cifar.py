"""Residual networks for 32 x 32 images, as a user would write them: plain modules that no family knows."""

from __future__ import annotations

from torch import Tensor, nn


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
