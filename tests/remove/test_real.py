"""Trained networks keep what they can do, on real checkpoints where they lie beside the project; skipped elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.remove.trained import FILE, MEASURED, Row

FOUND = {name: [Row(**row) for row in rows] for name, rows in json.loads(FILE.read_text(encoding="utf-8")).items()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def holds(row: Row) -> None:
    """A cut loses no more than its bound, and less than cuts at random do where there is anything to lose."""
    lost, by_chance = row.lost(row.after), [row.lost(value) for value in row.chance]
    assert lost <= row.at_most, row
    if row.criterion in ("Wanda", "Taylor"):
        assert lost < sum(by_chance) / len(by_chance), row
        assert row.right or lost < min(by_chance), row


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_found_is_within_its_bounds(name: str) -> None:
    for row in FOUND[name]:
        holds(row)


@pytest.mark.parametrize("name", MEASURED)
def test_trained_networks_keep_what_they_can_do(fixtures_folder: Path, name: str) -> None:
    """Measured again: as good as the table in docs/families.md says, give or take a few images or reviews."""
    rows = MEASURED[name](fixtures_folder)
    for row, written in zip(rows, FOUND[name], strict=True):
        holds(row)
        assert (row.network, row.measure, row.at_most) == (written.network, written.measure, written.at_most)
        now, then = [[one.before, one.after, *one.chance] for one in (row, written)]
        near = 0.01 if row.right else 1e-4
        assert now == pytest.approx(then, abs=near), (
            "run python -m tests.remove.trained FOLDER and python docs/make_families.py"
        )
