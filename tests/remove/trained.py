"""What trained networks can still do after a cut, measured on real checkpoints: python -m tests.remove.trained FOLDER

Writes trained.json beside this file, which docs/make_families.py makes a table of; test_real.py measures it again.
Nothing is trained after a cut.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.remove.cifar import CifarResNet

FILE = Path(__file__).with_name("trained.json")
SEEDS = range(3)


@dataclass(frozen=True)
class Row:
    """One measurement: before the cut, after it, and after cuts at random, one a seed.

    `right` says that it is a share of right answers, else it is how far the network moved. `at_most` is what may be
    lost, in the same unit.
    """

    network: str
    removed: str
    criterion: str
    measure: str
    before: float
    after: float
    chance: list[float]
    at_most: float

    @property
    def right(self) -> bool:
        return self.measure == "right"

    def lost(self, after: float) -> float:
        """How much worse than before."""
        return self.before - after if self.right else after - self.before


def without(model: Model, data: list[Batch], what: str, ratio: float, criterion: str, **options: int) -> Model:
    """The model after a cut that has proved itself on the first batch."""
    found = groups(model, what)
    plan = choose(model, found, score(model, found, data, criterion=criterion, **options), ratio=ratio)
    small = cut(model, plan)
    prove(model, plan, small, data[0])
    return small


def sorts(folder: Path) -> list[Row]:
    """A GPT-2 that continues six digits with the same in order, asked for all 729."""
    model = open_model(folder / "models" / "gpt2-nano-sort")
    digits = torch.tensor(list(itertools.product(range(3), repeat=6)))
    ordered = digits.sort(dim=1).values
    batch: Batch = {"input_ids": torch.cat([digits, ordered[:, :-1]], dim=1)}

    def right(cutting: Model) -> float:
        said = next(iter(logits(cutting, [batch])))[:, 5:].argmax(-1)
        return float((said == ordered).all(dim=1).float().mean())

    found = right(without(model, [batch], "channels", 0.25, "wanda"))
    chance = [right(without(model, [batch], "channels", 0.25, "random", seed=seed)) for seed in SEEDS]
    name = "GPT-2 that sorts six digits, all 729"
    return [Row(name, "25 % of channels", "Wanda", "right", right(model), found, chance, 0.0)]


def reviews(folder: Path) -> list[Row]:
    """A BERT that tells whether Korean film reviews like the film, on 1,300 that it did not learn from."""
    model = open_model(folder / "models" / "ko-nsmc-bert-tiny")
    lines = (folder / "text" / "korean-reviews.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[-1500:]]
    tokenize = model.tokenizer()

    def batch(some: list[dict[str, str]]) -> Batch:
        texts = [row["text"] for row in some]
        return dict(tokenize(texts, padding=True, truncation=True, max_length=96, return_tensors="pt"))

    labels = torch.tensor([int(row["label"]) for row in rows[200:]])
    held_out = batch(rows[200:])

    def right(cutting: Model) -> float:
        with torch.no_grad():
            said = load(cutting)(**held_out).logits.argmax(-1)
        return float((said == labels).float().mean())

    calibration = [batch(rows[:100]), batch(rows[100:200])]
    small = without(model, calibration, "channels", 0.25, "wanda")
    others = [without(model, calibration, "channels", 0.25, "random", seed=seed) for seed in SEEDS]
    told = ("BERT classifier of Korean reviews, 1,300 held out", "25 % of channels", "Wanda")
    moved = [divergence(cutting, model, [held_out]) for cutting in (small, *others)]
    return [
        Row(*told, "right", right(model), right(small), [right(other) for other in others], 0.01),
        Row(*told, "KL divergence of what it says", 0.0, moved[0], moved[1:], 0.0005),
    ]


@cache
def images(folder: Path) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as its networks take it, (n, 3, 32, 32), and the classes."""
    found = np.load(folder / "images" / "cifar10-4000.npz")
    pixels = torch.from_numpy(found["x"]).permute(0, 3, 1, 2).float() / 255
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / spread[:, None, None], torch.from_numpy(found["y"]).long()


def residual(folder: Path, depth: int, at_most: float) -> Row:
    """A residual network traced as any module is; its batch norms are measured anew after the cut."""
    module = CifarResNet(depth)
    state = load_file(folder / "models" / "resnet-cifar10" / f"resnet{depth}.safetensors")
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    module.eval()
    pixels, labels = images(folder)
    few = [(pixels[i : i + 8], labels[i : i + 8]) for i in range(0, 256, 8)]
    many = [(pixels[i : i + 125], labels[i : i + 125]) for i in range(0, 1000, 125)]
    held_out = slice(1000, 1600)
    network = traced.trace(module, pixels[:1])

    def right(cutting: nn.Module) -> float:
        with torch.no_grad():
            return float((cutting(pixels[held_out]).argmax(-1) == labels[held_out]).float().mean())

    def after(criterion: str, **options: int | Callable[..., Tensor]) -> float:
        scores = traced_score(network, few, criterion=criterion, **options)  # type: ignore[arg-type]
        plan = choose(network, network.groups, scores, ratio=0.25)  # type: ignore[arg-type]
        return right(recalibrate(traced.cut(network, plan), many))

    best = after("taylor", loss=nn.functional.cross_entropy)
    chance = [after("random", seed=seed) for seed in range(2)]
    name = f"ResNet-{depth}, CIFAR-10, 600 held out"
    return Row(name, "25 % of channels", "Taylor", "right", right(module), best, chance, at_most)


def experts(folder: Path, criterion: str) -> Row:
    """A Mixtral whose four experts are the same: whichever two go, nothing is lost."""
    model = open_model(folder / "models" / "stories260K-as-mixtral-upcycled4")
    batch: Batch = {"input_ids": torch.randint(3, 500, (4, 64), generator=torch.Generator().manual_seed(0))}
    before = next(iter(logits(model, [batch])))

    def moved(criterion: str) -> float:
        small = without(model, [batch], "experts", 0.5, criterion)
        assert small.config.num_local_experts == 2
        return float((next(iter(logits(small, [batch]))) - before).abs().max() / before.abs().max())

    told = ("Mixtral with four equal experts", "2 of 4 experts", {"reap": "REAP"}.get(criterion, criterion))
    return Row(*told, "largest difference of logits, relative", 0.0, moved(criterion), [moved("random")], 1e-4)


MEASURED: dict[str, Callable[[Path], list[Row]]] = {
    "sorts": sorts,
    "reviews": reviews,
    "resnet20": lambda folder: [residual(folder, 20, 0.12)],
    "resnet56": lambda folder: [residual(folder, 56, 0.10)],
    "experts": lambda folder: [experts(folder, criterion) for criterion in ("reap", "frequency")],
}


def _rounded(value: Any) -> Any:
    """Numbers with four digits that count, through all that holds them."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {name: [_rounded(asdict(row)) for row in measure(folder)] for name, measure in MEASURED.items()}
    FILE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
