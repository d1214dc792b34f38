"""mergekit 0.1.5 beside us: the same tensors to the last bit.

`python -m tests.peers.test_mergekit` writes what mergekit says as golden values, which tests/merging/test_golden.py
compares with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import prune
from tests.merging import cases

CLIENT = Path(__file__).with_name("mergekit_client.py")
PYTHON = os.environ.get("MERGEKIT_PYTHON", sys.executable)


def ask(folder: Path) -> Path:
    """Makes every trio and config below a folder and lets mergekit merge them."""
    pairs = []
    for case in cases.CASES:
        method, kind, dtype = case
        models = folder / f"{kind}-{dtype}"
        if not models.exists():
            cases.trio(models, kind, dtype)
        source = folder / f"{cases.name(case)}.yml"
        source.write_text(yaml.safe_dump(cases.config(method, models, dtype)))
        pairs.append([str(source), str(folder / cases.name(case))])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(CLIENT)], input=json.dumps(pairs), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def theirs(folder: Path, case: tuple[str, str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in (folder / cases.name(case)).glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ask(tmp_path_factory.mktemp("peer"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a merge that is written has, and the client: sums over large tensors depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def difference(ours: Tensor, other: Tensor) -> tuple[float, float]:
    """The share of entries that differ, and the largest difference relative to the tensor's size."""
    gap = (ours.double() - other.double()).abs()
    return float((gap > 0).double().mean()), float(gap.max() / other.double().abs().max())


def tied_with_the_threshold(models: Path, name: str) -> Tensor:
    """Where some model's change is exactly as large as the smallest that its density keeps."""
    base, *others = (load(models / member, name) for member in ("base", "one", "two"))
    sizes = [(other - base).abs() for other in others]
    least = [
        float(size.float().reshape(-1).sort(descending=True).values[int(0.4 * size.numel()) - 1]) for size in sizes
    ]
    return torch.stack([size == bound for size, bound in zip(sizes, least, strict=True)]).any(dim=0)


def load(folder: Path, name: str) -> Tensor:
    return prune.open(folder).tensors.read(name)


@pytest.mark.parametrize("case", cases.CASES, ids=cases.name)
@pytest.mark.usefixtures("one_thread")
def test_mergekit_gives_the_same_tensors(answers: Path, case: tuple[str, str, str]) -> None:
    method, _, dtype = case
    peer = theirs(answers, case)
    merged = prune.merge(answers / f"{cases.name(case)}.yml", seed=cases.SEED, compat="mergekit")
    assert set(merged.tensors.info) == set(peer)
    for name, other in peer.items():
        ours = merged.tensors.read(name)
        assert ours.dtype == other.dtype
        share, gap = difference(ours, other)
        if method == "ties" and dtype == "bfloat16":
            at_threshold = tied_with_the_threshold(answers / f"{case[1]}-{dtype}", name)
            assert at_threshold[ours != other].all(), (name, share, gap)  # mergekit keeps only some of those
        elif method in cases.SEVEN:
            assert torch.equal(ours, other), (name, share, gap)
        else:
            assert gap < 1e-5, (name, share, gap)


@pytest.mark.parametrize("case", [case for case in cases.CASES if case[0] in cases.SEVEN], ids=cases.name)
def test_float32_maths_by_default_stays_within_the_storage_type(answers: Path, case: tuple[str, str, str]) -> None:
    method, _, dtype = case
    peer = theirs(answers, case)
    merged = prune.merge(answers / f"{cases.name(case)}.yml", seed=cases.SEED)
    for name, other in peer.items() if not method.startswith("dare") else ():
        share, gap = difference(merged.tensors.read(name), other)
        if dtype == "float32":
            assert gap < 1e-6, (name, share, gap)
        elif method == "ties":
            assert share < 0.5, (name, share, gap)
        else:
            assert gap < 2**-7, (name, share, gap)


def test_the_golden_values_are_what_mergekit_says(answers: Path) -> None:
    for case in cases.CASES:
        assert cases.fingerprint(theirs(answers, case)) == cases.golden()[cases.name(case)], case


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asked = ask(Path(place))
        found = {cases.name(case): cases.fingerprint(theirs(asked, case)) for case in cases.CASES}
    cases.GOLDEN.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
