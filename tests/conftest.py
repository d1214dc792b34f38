"""Tiny models made from configs, the real fixtures where they lie beside the project, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, on models too small to share between threads

import pytest
import torch

from tests.tiny import tiny_model

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
collect_ignore = [] if os.environ.get("PRUNE_PEERS") else ["peers"]  # they run in environments of their own


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
