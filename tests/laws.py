"""What the laws of pruning need to be stated on any model, tiny and random or trained: dead units, a clean process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from prune.model.groups import HALVES, Group, groups, kinds
from prune.model.model import Model
from prune.model.save import load, save
from prune.model.tensors import Tensors
from prune.model.walk import Batch
from prune.remove.choose import choose
from prune.remove.score import score
from tests import zoo


def chosen(model: Model, kind: str | Sequence[str], ratio: float, **options: object) -> dict[str, list[int]]:
    found = groups(model, kind)
    return choose(model, found, score(model, found, criterion="random"), ratio=ratio, **options)  # type: ignore[arg-type]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def mortal(model: Model) -> list[str]:
    """The kinds whose units can be dead: not a layer, or half of one, that norms what passes it."""
    return [kind for kind in kinds(model) if kind not in ("layers", *HALVES) or model.family.residual]


def killed(model: Model, kind: str, plan: Mapping[str, Sequence[int]]) -> Model:
    """The model with the units of a kind that the plan removes in their places, and dead."""
    found = groups(model, kind)
    kill = _silenced if found[0].whole else _outvoted if kind == "experts" else _deadened
    return kill(model, found, plan)


def _writers(model: Model, prefix: str) -> dict[str, int]:
    """The matrices below a path whose products are added to the hidden state, and the dim of what they add."""
    offered = [kind for kind in kinds(model) if kind in ("heads", "channels")]
    pieces = [piece for group in groups(model, offered) for piece in group.consumers]
    found = {piece.name: (3 if piece.stacked else 1) - piece.dim for piece in pieces}
    layers = [model.layer(i) for i in range(model.numbers["layers"])]
    found |= {f"{layer}.{leaf}": 0 for layer in layers for leaf in model.family.adds}
    return {name: dim for name, dim in found.items() if name.startswith(f"{prefix}.") and name in model.tensors.info}


def _silenced(model: Model, found: Sequence[Group], plan: Mapping[str, Sequence[int]]) -> Model:
    """The model with zeros in all that the layers, or halves of layers, that the plan removes add."""
    (group,) = found
    half = model.family.sublayers.get(group.kind)
    changed = {}
    for unit in sorted(set(range(group.units)) - set(plan[group.name])):
        layer = model.layer(group.places[unit])
        writers = _writers(model, f"{layer}.{half.module}" if half else layer)
        assert writers, group.kind
        both = [name for weight in writers for name in (weight, _bias(weight)) if name in model.tensors.info]
        changed |= {name: torch.zeros_like(model.tensors.read(name)) for name in both}
    return _with(model, changed)


def _outvoted(model: Model, found: Sequence[Group], plan: Mapping[str, Sequence[int]]) -> Model:
    """The model with experts that no token goes to: their router looks at a position that is always above zero."""
    own = {name: model.tensors.read(name).clone() for name in model.tensors.info}
    own["model.embed_tokens.weight"][:, 0] = 1
    for i in range(model.numbers["layers"]):
        for name, dim in _writers(model, model.layer(i)).items():
            own[name].select(dim, 0).zero_()
            assert _bias(name) not in own
    for group in found:
        (router,) = (piece for piece in group.slices if piece.role == "router")
        for unit in set(range(group.units)) - set(plan[group.name]):
            own[router.name][unit] = 0
            own[router.name][unit, 0] = -1e4
    return _with(model, own)


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias"


def _with(model: Model, changed: Mapping[str, Tensor]) -> Model:
    read = model.tensors.read
    return replace(
        model, tensors=Tensors(model.tensors.info, lambda name: changed[name] if name in changed else read(name))
    )


def _deadened(model: Model, found: Sequence[Group], plan: Mapping[str, Sequence[int]]) -> Model:
    """The model with everything at zero that goes into and comes out of the units that the plan removes."""
    zeroed = {name: model.tensors.read(name).clone() for name in model.tensors.info}
    for group in found:
        removed = sorted(set(range(group.units)) - set(plan[group.name]))
        for piece in group.slices:
            if piece.norm_of:
                continue
            tensor = zeroed[piece.name]
            first = tensor.movedim(piece.dim, 1 if piece.stacked else 0)
            flat = first.reshape(-1, *first.shape[2:]) if piece.stacked else first.clone()
            flat[piece.index[removed].reshape(-1)] = 0
            zeroed[piece.name] = flat.reshape(first.shape).movedim(1 if piece.stacked else 0, piece.dim).contiguous()
    return replace(model, tensors=Tensors(model.tensors.info, zeroed.__getitem__))


CLEAN = """
import json, sys, torch, transformers
from safetensors.torch import load_file
torch.set_num_threads(1)
found = {}
for folder in sys.argv[1:]:
    config = json.load(open(f"{folder}/config.json"))
    given = load_file(f"{folder}/../given.safetensors")
    expected = given.pop("expected")
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(**given).logits
    row = {"equal": torch.equal(logits, expected), "type": config["model_type"],
           "clean": not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))}
    if hasattr(model, "generate") and "pixel_values" not in given:
        given = {key: value for key, value in given.items() if not key.startswith("decoder_")}
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        tokens = [model.generate(**given, use_cache=cache, **options) for cache in (True, False)]
        row["generates"] = torch.equal(*tokens)
    found[folder] = row
assert "prune" not in sys.modules
print(json.dumps(found))
"""


def leave(model: Model, folder: Path, inputs: Batch) -> None:
    """Save a model, and beside the folder the inputs and what it says of them while it is in memory."""
    folder.parent.mkdir(parents=True)
    save_file({**inputs, "expected": zoo.logits(load(model), inputs)}, folder.parent / "given.safetensors")
    save(model, folder)


def in_a_clean_process(folders: Sequence[Path]) -> dict[Path, dict[str, object]]:
    """What plain transformers, in a process without prune, makes of each of the folders that were left."""
    command = [sys.executable, "-c", CLEAN, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {folder: found[str(folder)] for folder in folders}
