"""Random masks: by themselves seeded from (seed, tensor, input, place), so that neither order nor threads matter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

RULE = "SFC64 of sha256(seed, tensor, input, first entry); an entry stays where a 16-bit word is below density x 2^16"
COMPAT_RULE = "torch.bernoulli, seeded once, tensors in the order of their names, models in the config's order"


def mask(seed: int, name: str, number: int, start: int, chance: float | Tensor, like: Tensor) -> Tensor:
    """Ones and zeros in the shape and type of `like`, one with probability `chance` (a number, or one per entry)."""
    return _shaped(_drawn(seed, name, number, start, chance, like), like)


def _drawn(seed: int, name: str, number: int, start: int, chance: float | Tensor, like: Tensor) -> np.ndarray:
    """Which entries of `like`, laid out flat, stay: truths (entries,)."""
    key = hashlib.sha256(f"{seed}\n{name}\n{number}\n{start}".encode()).digest()
    words = np.random.SFC64(int.from_bytes(key, "little")).random_raw(-(-like.numel() // 4))
    drawn = words.view(np.uint16)[: like.numel()]
    if isinstance(chance, Tensor):
        bounds = (chance.cpu().float() * 2.0**16).reshape(-1).numpy()
        return drawn < bounds
    return drawn < np.uint16(min(round(chance * 2.0**16), 2**16 - 1))


def _shaped(kept: np.ndarray, like: Tensor) -> Tensor:
    """Bytes or truths of zero and one as a mask for `like`."""
    return torch.from_numpy(kept.view(np.uint8)).reshape(like.shape).to(device=like.device, dtype=like.dtype)


@dataclass
class Remembered:
    """Masks of one tensor, each drawn once and kept, an entry a bit, for the second pass."""

    seed: int
    name: str
    bits: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)  # (first entry, input) -> packed mask

    def mask(self, start: int, number: int, chance: float | Tensor, like: Tensor) -> Tensor:
        packed = self.bits.get((start, number))
        if packed is not None:
            return _shaped(np.unpackbits(packed, count=like.numel()), like)
        kept = _drawn(self.seed, self.name, number, start, chance, like)
        self.bits[start, number] = np.packbits(kept)
        return _shaped(kept, like)


@dataclass
class InTurn:
    """Masks of one tensor as one generator draws them that goes through all tensors: `state` is where it stands."""

    state: Tensor
    drawn: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, number: int, chance: float | Tensor, like: Tensor) -> Tensor:
        if number not in self.drawn:
            generator = torch.Generator()
            generator.set_state(self.state)
            self.drawn[number] = _bernoulli(chance, like, generator)
            self.state = generator.get_state()
        return self.drawn[number]


def states(seed: int, shapes: Sequence[tuple[tuple[int, ...], int, torch.dtype]]) -> list[Tensor]:
    """Where the generator stands before each tensor: (shape, masks drawn of it, type) for all of them in turn."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape, count, dtype in shapes:
        found.append(generator.get_state())
        like = torch.empty(shape, dtype=dtype) if count else None
        for _ in range(count):
            assert like is not None
            _bernoulli(0.5, like, generator)
    return found


def _bernoulli(chance: float | Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    """A mask drawn on the CPU, wherever `like` is: other devices draw other numbers."""
    dtype = like.dtype if like.dtype == torch.bfloat16 else torch.float32
    chances = chance.cpu() if isinstance(chance, Tensor) else torch.full(like.shape, chance, dtype=dtype)
    return torch.bernoulli(chances, generator=generator).to(device=like.device, dtype=like.dtype)
