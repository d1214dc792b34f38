"""Opening refuses what transformers lets through: foreign code, missing, extra, odd or doubled tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune import bundled
from prune.errors import PruneError
from prune.model.foreign import read_config, scrub
from prune.model.open import open as open_model
from prune.model.save import save
from tests import zoo
from tests.tiny import FAMILIES, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def change_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_there_and_reads_as_saved(tmp_path: Path, family: str) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    opened = open_model(tmp_path)
    assert opened.family.model_type == family
    state = model.state_dict()
    assert set(opened.tensors.info) == set(state)
    assert all(torch.equal(opened.tensors.read(name), state[name]) for name in state)
    wanted = {"heads": 8, "kv_heads": 4, "channels": 40, "head_dim": 6}
    assert wanted.items() <= opened.sizes(1).items()


def test_a_model_in_memory_opens_without_a_copy() -> None:
    module = tiny_model("llama", tie_word_embeddings=True)
    opened = open_model(module)
    name = "model.layers.0.mlp.up_proj.weight"
    assert opened.tensors.read(name).data_ptr() == module.get_parameter(name).data_ptr()
    assert "lm_head.weight" not in opened.tensors.info


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks tensor 'model.norm.weight'"),
        (lambda t: t.update(extra=torch.ones(1)), "has an unexpected tensor 'extra'"),
        (lambda t: t.update({"model.norm.weight": torch.ones(47)}), r"shape \[47\], the config says \[48\]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(48).half()}), "is float16, the config says float32"),
    ],
)
def test_config_and_weights_must_agree(folder: Path, change: Callable, says: str) -> None:
    change_tensors(folder, change)
    with pytest.raises(PruneError, match=says):
        open_model(folder)


def test_a_stored_rotary_table_of_old_checkpoints_is_passed_over(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}))
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in open_model(folder).tensors.info


@pytest.mark.parametrize("same", [True, False])
def test_tied_weights_stored_twice_must_be_equal(tmp_path: Path, same: bool) -> None:
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    change_tensors(
        tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + (0.0 if same else 1.0)})
    )
    if same:
        assert "lm_head.weight" not in open_model(tmp_path).tensors.info
    else:
        opened = open_model(tmp_path)  # nothing is read yet
        for _ in range(2):
            with pytest.raises(PruneError, match="tied by the config but differ"):
                opened.tensors.read("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "lama"}, "unknown model family 'lama'; did you mean 'llama'"),
        ({"model_type": ...}, "has no model_type"),
        ({"architectures": ["LlamaForEverything"]}, "unknown architecture"),
        ({"quantization_config": {"bits": 4}}, "quantised checkpoint"),
        ({"num_attention_heads": 7}, "LlamaConfig refuses this config"),
        ({"num_hidden_layers": "three"}, "LlamaConfig refuses this config"),
        ({"intermediate_size": 39}, "config and weights disagree"),
        ({"num_hidden_layers": 10**6}, "the config says 1000000 layers, the checkpoint has 3"),
        ({"hidden_size": 10**15}, "config"),
        ({"vocab_size": -5}, "cannot build this config"),
        ({"head_dim": 0}, "config"),
        ({"num_key_value_heads": 0}, "config"),
        ({"hidden_act": "nothing"}, "cannot build this config"),
        ({"rope_parameters": {"rope_type": "evil", "rope_theta": 1.0}}, "config"),
        ({"architectures": 5}, "architectures must be a list of class names"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "config"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_in_one_line(folder: Path, values: dict, says: str) -> None:
    change_config(folder, **values)
    with pytest.raises(PruneError, match=says) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


def test_foreign_configs_lose_every_key_that_names_code(folder: Path) -> None:
    change_config(
        folder,
        auto_map={"AutoModel": "evil.py"},
        trust_remote_code=True,
        attn_implementation="someone/kernel",
        _attn_implementation_internal="someone/kernel",
        nested={"auto_map": 1, "fine": [{"_private": 2, "kept": 3}]},
    )
    config = read_config(folder)
    assert not hasattr(config, "auto_map")
    assert not hasattr(config, "trust_remote_code")
    assert config._attn_implementation != "someone/kernel"
    assert config.nested == {"fine": [{"kept": 3}]}
    assert scrub({"_x": 1, "y": 2}) == {"y": 2}


def test_no_python_file_travels_along(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("boom")
    (folder / "tokenizer_evil.py").write_text("boom")
    (folder / "tokenizer.json").write_text("{}")
    assert set(open_model(folder).files) == {"generation_config.json", "tokenizer.json"}


@pytest.mark.parametrize("source", ["no/such/folder/here", "./nothing", "a b"])
def test_a_missing_folder_is_said_so(source: str) -> None:
    with pytest.raises(PruneError, match="no model folder"):
        open_model(source)


def test_an_id_that_the_hub_does_not_give_is_one_line() -> None:
    with pytest.raises(PruneError, match="the Hub does not give it") as caught:
        open_model("someone/nothing")
    assert "\n" not in str(caught.value)


def test_a_hub_model_is_opened_from_its_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((source, revision, "*.safetensors" in allow_patterns, any("py" in p for p in allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_model("owner/name", revision="v1").family.model_type == "llama"
    assert asked == [("owner/name", "v1", False, False), ("owner/name", "v1", True, False)]


def test_an_unknown_family_is_refused_before_its_weights_are_downloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(folder, model_type="strange")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, allow_patterns, **__: asked.append(allow_patterns) or folder
    )
    with pytest.raises(PruneError, match="unknown model family 'strange'"):
        open_model("owner/name")
    assert not any("*.safetensors" in patterns for patterns in asked)


def test_an_architecture_without_a_family_is_described(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 5, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "falcon", **sizes}))
    with pytest.raises(PruneError, match=r"adding-a-family.* \(it has 5 layers of width 64 with 4 heads\)"):
        open_model(tmp_path)


def test_tokenizer_settings_lose_what_names_code_and_nothing_else(tmp_path: Path) -> None:
    shutil.copytree(bundled.folder(), tmp_path / "m")
    plain = (tmp_path / "m" / "tokenizer_config.json").read_bytes()
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(plain), "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    opened = open_model(tmp_path / "m")
    assert opened.tokenizer().decode(opened.tokenizer()("def f():")["input_ids"]) == "def f():"
    save(opened, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == json.loads(plain)
    tokenizer = "tokenizer.json"
    assert (tmp_path / "out" / tokenizer).read_bytes() == (tmp_path / "m" / tokenizer).read_bytes()


@pytest.mark.parametrize(("name", "text"), [("tokenizer.json", "{"), ("tokenizer_config.json", "[")])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    shutil.copytree(bundled.folder(), tmp_path / "m")
    (tmp_path / "m" / name).write_text(text)
    with pytest.raises(PruneError) as caught:
        open_model(tmp_path / "m").tokenizer()
    assert "\n" not in str(caught.value)


def test_attention_to_another_model_is_refused() -> None:
    with pytest.raises(PruneError, match="a gpt2 with add_cross_attention attends to another model"):
        open_model(zoo.module("gpt2", add_cross_attention=True))
