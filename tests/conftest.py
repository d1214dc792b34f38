"""Tiny models made from configs, the real fixtures where they lie beside the project, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch

from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def fixtures_folder() -> Path:
    """Real trained checkpoints; the test is skipped where they are not there."""
    folder = Path(os.environ.get("PRUNE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip("no real fixtures here (PRUNE_FIXTURES names their folder)")
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    return folder
