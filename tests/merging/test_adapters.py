"""`model+adapter` is the model with the adapter merged in, as peft does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune
from prune.errors import PruneError
from tests.merging import cases
from tests.tiny import tiny_model


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {}, "alpha_pattern": {"down_proj": 2.0}}])
def test_it_equals_peft(tmp_path: Path, more: dict[str, Any]) -> None:
    from peft import PeftModel

    prune.save(prune.open(tiny_model("llama")), tmp_path / "model")
    cases.adapter(tmp_path / "adapter", **more)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    wanted = PeftModel.from_pretrained(stock, tmp_path / "adapter").merge_and_unload().state_dict()
    reference = f"{tmp_path / 'model'}+{tmp_path / 'adapter'}"
    merged = prune.merge({"merge_method": "passthrough", "models": [{"model": reference}]})
    for name in merged.tensors.info:
        torch.testing.assert_close(merged.tensors.read(name), wanted[name], rtol=1e-5, atol=1e-6)
    moved = merged.tensors.read("model.layers.0.mlp.down_proj.weight")
    assert not torch.equal(moved, prune.open(tmp_path / "model").tensors.read("model.layers.0.mlp.down_proj.weight"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"use_dora": True}, "only plain LoRA adapters are read, not use_dora"),
        ({"peft_type": "IA3"}, "only plain LoRA adapters are read, not IA3"),
        ({"fan_in_fan_out": True}, "of shape"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, more: dict[str, Any], expected: str) -> None:
    prune.save(prune.open(tiny_model("llama")), tmp_path / "model")
    cases.adapter(tmp_path / "adapter", **more)
    reference = f"{tmp_path / 'model'}+{tmp_path / 'adapter'}"
    with pytest.raises(PruneError, match=expected):
        prune.merge({"merge_method": "passthrough", "models": [{"model": reference}]})


def test_a_folder_that_is_no_adapter_is_said_so(tmp_path: Path) -> None:
    prune.save(prune.open(tiny_model("llama")), tmp_path / "model")
    with pytest.raises(PruneError, match="is not an adapter"):
        prune.merge(
            {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'model'}+{tmp_path / 'model'}"}]}
        )
