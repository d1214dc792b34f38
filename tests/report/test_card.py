"""The model card: front matter as the Hub reads it, and a body that says where the model comes from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from prune.report.card import card, spans
from prune.report.metadata import relation
from tests.report.sample import everything

RELATIONS = {"adapter", "merge", "quantized", "finetune"}  # what the Hub accepts
FIELDS = {
    "library_name",
    "tags",
    "base_model",
    "base_model_relation",
    "license",
    "pipeline_tag",
    "datasets",
    "model-index",
}
MARK = "\n---\nlicense: evil\n---\n<script>alert(1)</script>| a | b |\n```\n# x"


def made(mark: str = "", *, words: set[str] | None = None, **options: Any) -> str:
    manifest, _ = everything(mark)
    manifest["steps"] = [step for step in manifest["steps"] if words is None or step["word"] in words]
    settings = {
        "model_type": "llama",
        "base_model": "org/tiny",
        "licence": "mit",
        "architectures": ["LlamaForCausalLM"],
    }
    return card(manifest, **{**settings, **options})


def test_code_in_a_cell_stays_code_and_nothing_else_gets_through() -> None:
    assert spans("a_b `x|y <i>` *c*") == r"a\_b `x\|y <i>` \*c\*"
    assert spans("one ` <i>|") == r"one \` &lt;i&gt;\|"


def step(word: str, **options: Any) -> dict[str, Any]:
    return {"word": word, "options": options, "record": {}, "warnings": []}


def test_the_hub_reads_the_front_matter() -> None:
    found = ModelCard(made(words={"remove", "evaluate"}), ignore_metadata_errors=False).data.to_dict()
    assert found["base_model"] == "org/tiny" and found["base_model_relation"] == "finetune"
    assert (found["license"], found["pipeline_tag"]) == ("mit", "text-generation")
    assert found["tags"] == ["pruned", "structured-pruning"]
    parsed = ModelCard(made(words={"remove", "evaluate"})).data.eval_results
    assert parsed is not None
    assert {(one.dataset_name, one.metric_type): one.metric_value for one in parsed}[
        "python-docs, heldout", "perplexity"
    ] == 9.4


@pytest.mark.parametrize("words", [{"remove"}, {"merge", "evaluate"}, {"export"}, {"distill", "evaluate"}, None])
def test_every_card_has_only_fields_and_relations_of_the_hub(words: set[str] | None) -> None:
    header = yaml.safe_load(re.match(r"---\n(.*?\n)---", made(words=words), re.DOTALL)[1])
    assert set(header) <= FIELDS
    assert header["base_model_relation"] in RELATIONS
    name, results = model_index_to_eval_results(header.get("model-index", [{"name": "x", "results": []}]))
    assert name and all(isinstance(one.metric_value, float) for one in results)


def test_the_relation_says_what_was_done() -> None:
    assert relation([step("remove"), step("export", format="gguf", type="q4_0")]) == "finetune"
    assert relation([step("merge"), step("remove")]) == "merge"
    assert relation([step("export", format="gguf", type="Q8_0")]) == "quantized"
    assert relation([step("export", format="onnx", precision="int8")]) == "quantized"
    assert relation([step("export", format="onnx")]) == "finetune"


def test_a_merge_names_all_its_models() -> None:
    text = made(words={"merge"})
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == ["org/tiny", "org/one", "org/two"]
    assert "## What was merged" in text and "# org/tiny, merged" in text


def test_what_was_measured_before_the_model_changed_again_is_no_result_of_it() -> None:
    manifest, _ = everything()
    manifest["steps"] = [manifest["steps"][5], manifest["steps"][1]]
    text = card(manifest, model_type="llama", base_model=None, licence=None)
    assert "model-index" not in yaml.safe_load(text.split("---")[1])


def test_data_of_the_hub_is_named_and_a_local_file_is_not() -> None:
    manifest, _ = everything()
    manifest["steps"][1]["inputs"] = {"calibration": [{"data": "allenai/c4"}, "allenai/c4@main#train"]}
    manifest["steps"][2]["inputs"] = {"calibration": [{"data": "/home/me/x.txt"}, "ab" * 32]}
    text = card(manifest, model_type="llama", base_model=None, licence=None)
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["allenai/c4"]


def test_names_cannot_break_out_of_the_card() -> None:
    text = made(MARK)
    header = yaml.safe_load(re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)[1])
    assert header["license"] == "mit"
    assert ModelCard(text).data.to_dict()["license"] == "mit"
    body = re.sub(r"(?s)````+yaml.*?````+", "", text.split("\n---\n", 1)[1])
    assert "<script>" not in body
    assert "```\n# x" not in re.sub(r"(?s)(`{4,}yaml\n.*?\n?`{4,})", "", body)


def test_it_says_how_to_trust_load_and_remake_it() -> None:
    text = made()
    for part in (
        "## What was removed",
        "## Before and after",
        "## Whether to trust it",
        "## Loading",
        "## Making it again",
    ):
        assert part in text
    assert "4.1e-07" in text and "Warning: a warning" in text
    assert "text.jsonl" in text.split("## Calibration data")[1]
    assert "report/index.html" in text
    assert "prune.load" in made(model_type="prune_llama")
