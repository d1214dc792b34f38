"""A model that no family serves is told what is missing, from its config and headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
)

from prune import cli
from prune.model.family import Family
from prune.stranger import PAGE, stranger


@pytest.fixture
def falcon(tmp_path: Path) -> Path:
    config = FalconConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=64)
    FalconForCausalLM(config).save_pretrained(tmp_path / "falcon")
    return tmp_path / "falcon"


def test_an_unknown_architecture_is_taken_apart(falcon: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stranger(str(falcon))
    assert found is not None
    assert found["layers"] == {"path": "transformer.h", "count": 3}
    assert found["channels"] == [
        {"channels": 128, "made_by": ["mlp.dense_h_to_4h"], "read_by": "mlp.dense_4h_to_h"},
    ]
    assert found["beside"] == ["self_attention.dense.weight", "self_attention.query_key_value.weight"]
    assert found["config"]["head_dim"] is None and found["config"]["width"] == "hidden_size"
    assert cli.run(["inspect", str(falcon)]) == 0
    said = capsys.readouterr().out
    assert "model type 'falcon' has no family here" in said
    assert PAGE in said and (Path(__file__).parents[1] / PAGE).is_file()
    assert "self_attention.query_key_value.weight" in said and "?" in said


def test_the_draft_is_a_family_whose_channels_are_right(falcon: Path) -> None:
    found = stranger(str(falcon))
    assert found is not None
    names: dict[str, object] = {}
    exec(compile(found["draft"], "draft", "exec"), names)
    family = names["FAMILY"]
    assert isinstance(family, Family) and family.model_type == "falcon" and family.layers == "transformer.h"
    parts = {part.tensor: part.dim for part in family.parts["channels"]}
    assert set(family.parts) == {"channels"}  # heads are left to a person: a kind without slices would be offered
    assert "self_attention.query_key_value.weight" in found["draft"]
    assert parts == {"mlp.dense_h_to_4h.weight": 0, "mlp.dense_h_to_4h.bias": 0, "mlp.dense_4h_to_h.weight": 1}
    assert set(family.sizes) == {"layers", "width", "heads", "kv_heads", "channels"}


def test_a_draft_by_likeness_claims_no_more_than_names_tell(tmp_path: Path) -> None:
    config = CohereConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    CohereForCausalLM(config).save_pretrained(tmp_path)
    found = stranger(str(tmp_path))
    assert found is not None and not found["lacks"] and not found["beside"]
    names: dict[str, object] = {}
    exec(compile(found["draft"], "draft", "exec"), names)
    family = names["FAMILY"]
    assert isinstance(family, Family) and family.stream is None and not family.sublayers
    assert "to be proved" in found["draft"]


def test_a_model_laid_out_like_a_known_one_is_told_so(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "never_heard_of"}))
    (tmp_path / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes())
    found = stranger(str(tmp_path))
    assert found is not None and found["nearest"] == "llama" and not found["lacks"] and not found["beside"]
    assert cli.run(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "nor a class in this transformers" in said and "if it computes what llama does" in said


def test_an_encoder_with_a_decoder_says_what_its_fullest_layers_hold(tmp_path: Path) -> None:
    config = BartConfig(d_model=16, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=24, decoder_ffn_dim=24)
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    found = stranger(str(tmp_path))
    assert found is not None and found["layers"] == {"path": "model.decoder.layers", "count": 2}
    assert found["channels"][0] == {"channels": 24, "made_by": ["fc1"], "read_by": "fc2"}


@pytest.mark.parametrize("known", ["bundled", "llama"])
def test_known_models_are_no_strangers(known: str, llama_folder: Path) -> None:
    assert stranger(str(llama_folder) if known == "llama" else known) is None
