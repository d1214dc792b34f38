"""The tiny trained model that recipes and tests run on, and the text it learned from."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder of the bundled model: config, bf16 safetensors, tokenizer and card."""
    return Path(__file__).parent / "model"
