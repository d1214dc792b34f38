"""The model card: front matter as the Hub reads it, and a body that says where the model comes from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model import family as families
from prune.model.register import classes
from prune.report.blocks import Code, Facts
from prune.report.card import card, spans
from prune.report.metadata import relation
from prune.report.reproduce import kind
from prune.report.sections import loading
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


def results(manifest: dict[str, Any], **options: Any) -> list[Any]:
    settings = {"model_type": "llama", "base_model": None, "licence": None, "architectures": ["LlamaForCausalLM"]}
    found = ModelCard(card(manifest, **{**settings, **options})).data.eval_results
    assert found is not None
    return found


def test_a_perplexity_carries_what_it_was_measured_on() -> None:
    manifest, _ = everything()
    manifest["steps"] = [manifest["steps"][3]]
    record = manifest["steps"][0]["record"]["perplexity"]
    record |= {"data": {"data": "Salesforce/wikitext:wikitext-2-raw-v1", "split": "test"}, "documents": "joined"}
    (found,) = results(manifest)
    assert found.dataset_type == "Salesforce/wikitext"
    assert found.metric_args == {"length": 256, "stride": 255, "documents": "joined", "tokens": 16320}


def test_a_part_of_kmmlu_is_not_published_as_the_whole() -> None:
    part = {"data": "HAERAE-HUB/KMMLU", "scorer": "own", "shots": 5, "micro": 0.25, "macro": 0.25, "error": 0.2}
    part |= {"majority": 0.5, "majority_answer": "B", "questions": 4, "correct": 1, "groups": {}}
    part |= {"subjects": {"Law": {"correct": 1, "questions": 2}, "Math": {"correct": 0, "questions": 2}}}
    manifest, _ = everything()
    scored = {"word": "evaluate", "options": {}, "record": {"tasks": {"before": {"kmmlu": part}}}, "warnings": []}
    scored["record"]["tasks"]["after"] = {"kmmlu": part | {"micro": 0.5}}
    manifest["steps"] = [scored]
    one, other = results(manifest)
    name = "KMMLU, 5-shot, 2 of 45 subjects, 4 questions (majority 50.0 %)"
    assert {one.dataset_name, other.dataset_name} == {name}
    assert (one.dataset_type, one.metric_name, one.metric_value) == ("HAERAE-HUB/KMMLU", "accuracy", 0.5)
    assert other.metric_name == "macro accuracy"
    stated = {"shots": 5, "subjects": 2, "subjects_in_all": 45, "questions": 4, "majority": 0.5, "majority_answer": "B"}
    assert one.metric_args == {**stated, "scorer": "own", "error": 0.2}
    text = card(manifest, model_type="llama", base_model=None, licence=None)
    assert f"| {name} | 25.0 ± 20.0 % | 50.0 ± 20.0 % | +25.0 points |" in text
    removed = {"word": "remove", "options": {}, "record": {"saved_as": "llama"}, "warnings": []}
    manifest["steps"] = [scored, removed]
    assert f"| {name} | 25.0 ± 20.0 % |  |  |" in card(manifest, model_type="llama", base_model=None, licence=None)


def test_the_accuracy_of_a_classifier_is_a_result() -> None:
    said = {"data": {"data": "own.jsonl"}, "task": "sequences", "labels": 40}
    said |= {"before": {"accuracy": 0.9, "loss": 0.3}, "after": {"accuracy": 0.8, "loss": 0.5}}
    manifest, _ = everything()
    manifest["steps"] = [{"word": "evaluate", "options": {}, "record": {"accuracy": said}, "warnings": []}]
    (found,) = results(manifest, model_type="bert", architectures=["BertForSequenceClassification"])
    assert (found.task_type, found.metric_type, found.metric_value) == ("text-classification", "accuracy", 0.8)
    assert found.metric_args == {"task": "sequences", "labels": 40}


@pytest.mark.parametrize(
    ("architecture", "auto", "pipeline"),
    [
        ("BertForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", "text-generation"),
        ("ViTForImageClassification", "AutoModelForImageClassification", "image-classification"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("BertModel", "AutoModel", None),
    ],
)
def test_card_and_page_name_the_auto_class_that_loads_it(architecture: str, auto: str, pipeline: str | None) -> None:
    line = f'model = {auto}.from_pretrained("path/to/this/folder")'
    text = made(model_type="any", architectures=[architecture])
    assert line in text
    assert yaml.safe_load(text.split("---")[1]).get("pipeline_tag") == pipeline
    facts = Facts({"steps": [{"word": "remove", "record": {"saved_as": "any", "architecture": architecture}}]}, [])
    section = loading.section(facts)
    assert section and any(line in block.text for block in section.blocks if isinstance(block, Code))


@pytest.mark.parametrize("name", families.names())
def test_the_auto_class_that_is_named_takes_every_class_of_a_family(name: str) -> None:
    for architecture in families.of(name).classes:
        found = kind([architecture])
        assert found, architecture
        taken = classes(getattr(transformers, found[0]), CONFIG_MAPPING[name])
        assert architecture in [one.__name__ for one in taken]


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
