"""Configs: precedence, gradients and filters, and what is refused before a tensor is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prune
from prune.document import parse as parse_yaml
from prune.errors import PruneError
from prune.merging.config import Reference
from prune.merging.merge import prepare
from prune.merging.methods import names
from prune.merging.parse import parse
from prune.model.tensors import Tensors
from tests.merging import cases
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.trio(tmp_path_factory.mktemp("configs"), "plain", "float32")


def plan_of(place: Path, **keys: Any) -> Any:
    base = {"merge_method": "linear", "models": [{"model": str(place / "one")}, {"model": str(place / "two")}]}
    return prepare({**base, **keys}).plan


def test_gradients_run_from_the_first_layer_to_the_last(place: Path) -> None:
    values = plan_of(place, parameters={"weight": [0.25, 1.0, 0.5]}).values
    assert [values[f"model.layers.{layer}.mlp.up_proj.weight"]["weight"][0] for layer in range(3)] == [0.25, 1.0, 0.5]
    values = plan_of(place, parameters={"weight": [1.0, 2.0]}).values
    assert values["model.layers.1.mlp.up_proj.weight"]["weight"] == [1.5, 1.5]
    for outer in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert values[outer]["weight"] == [1.0, 1.0]


def test_a_slice_of_one_layer_takes_the_gradients_end(place: Path) -> None:
    sources = [{"model": str(place / "one"), "layer_range": [0, 1]}]
    values = prepare(
        {"merge_method": "passthrough", "slices": [{"sources": sources}], "parameters": {"scale": [0.25, 0.75]}}
    ).plan.values
    assert values["model.layers.0.mlp.up_proj.weight"]["scale"] == [0.75]
    assert values["model.embed_tokens.weight"]["scale"] == [0.25]


def test_the_first_filter_that_matches_counts_and_what_none_matches_falls_through(place: Path) -> None:
    own = [{"filter": "mlp.up", "value": 1}, {"filter": "mlp", "value": 2}]
    models = [
        {"model": str(place / "one"), "parameters": {"weight": own}},
        {"model": str(place / "two"), "parameters": {"weight": 9}},
    ]
    values = plan_of(place, models=models, parameters={"weight": 5}).values
    assert values["model.layers.0.mlp.up_proj.weight"]["weight"] == [1, 9]
    assert values["model.layers.0.mlp.down_proj.weight"]["weight"] == [2, 9]
    assert values["model.layers.0.self_attn.q_proj.weight"]["weight"] == [5, 9]


def test_source_beats_slice_beats_module_beats_everything(place: Path) -> None:
    def source(name: str, **parameters: Any) -> dict[str, Any]:
        return {"model": str(place / name), "layer_range": [0, 3], "parameters": parameters}

    def values(**levels: dict[str, Any]) -> Any:
        one = {
            "sources": [source("one", **levels.get("source", {})), source("two")],
            "parameters": levels.get("slice", {}),
        }
        module = {"slices": [one], "parameters": levels.get("module", {})}
        made = prepare({"merge_method": "linear", "modules": {"default": module}, "parameters": levels["all"]})
        return made.plan.values["model.layers.0.mlp.up_proj.weight"]["weight"]

    levels = {"all": {"weight": 1}}
    assert values(**levels) == [1, 1]
    levels["module"] = {"weight": 2}
    assert values(**levels) == [2, 2]
    levels["slice"] = {"weight": 3}
    assert values(**levels) == [3, 3]
    levels["source"] = {"weight": 4}
    assert values(**levels) == [4, 3]


@pytest.mark.parametrize(("spelt", "value"), [("1e-3", 0.001), ("'0.5'", 0.5), ("2", 2.0)])
def test_numbers_are_read_as_yaml_files_spell_them(place: Path, spelt: str, value: float) -> None:
    text = f"merge_method: linear\nmodels:\n- model: {place / 'one'}\nparameters: {{weight: {spelt}}}\n"
    values = prepare(parse_yaml(text, "c.yml")).plan.values
    assert values["lm_head.weight"]["weight"] == [value]


def test_references_name_revisions_and_adapters() -> None:
    def first(model: Any) -> Reference:
        return parse({"merge_method": "linear", "models": [{"model": model}]}, names()).references[0]

    assert first("a/b") == Reference("a/b")
    assert first("a/b@main+c/d@v1") == Reference("a/b", "main", "c/d", "v1")
    assert first({"model": {"path": "a", "revision": "r"}, "lora": "l"}) == Reference("a", "r", "l")
    assert str(first("a@r+l")) == "a@r+l"


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("On", True), ("no", False), ("off", False), ("FALSE", False)]
)
def test_every_word_of_yaml_for_true_and_false_is_read_where_one_is_wanted(place: Path, word: str, value: bool) -> None:
    text = f"merge_method: linear\nmodels:\n- model: {place / 'one'}\nparameters: {{weight: 1, normalize: {word}}}\n"
    assert prepare(parse_yaml(text, "c.yml")).plan.values["lm_head.weight"]["normalize"] is value


FILTER = [{"filter": "mpl", "value": 1}, {"value": 2}]
BOTH = {"tokenizer_source": "union", "tokenizer": {}}
COMPLAINTS: list[tuple[dict[str, Any], str]] = [
    ({"merge_metod": "linear"}, "unknown key 'merge_metod'; did you mean 'merge_method'?"),
    ({"merge_method": "tis"}, "unknown merge_method 'tis'; did you mean 'ties'?"),
    ({"slices": [{}]}, "exactly one of models, slices and modules must be there, not models and slices"),
    ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
    ({"parameters": {"wieght": 1}}, "unknown parameter of linear 'wieght'; did you mean 'weight'?"),
    ({"parameters": {"weight": FILTER}}, "the filter 'mpl'; did you mean 'mlp'?"),
    ({"parameters": {"weight": 0}}, "the weights sum to zero"),
    ({"parameters": {"weight": []}}, "an empty list says nothing"),
    ({"parameters": {"weight": "much"}}, "weight must be a number, not 'much'"),
    ({"parameters": {"weight": "nan"}}, "weight must be a finite number, not 'nan'"),
    ({"parameters": {"weight": [1, float("inf")]}}, "weight must be a finite number, not inf"),
    ({"merge_method": "karcher", "parameters": {"max_iter": "inf"}}, "max_iter must be a finite number, not 'inf'"),
    ({"merge_method": "karcher", "parameters": {"max_iter": [5, 10]}}, "max_iter must be a whole number, not 7.5"),
    ({"models": [{"model": {}}]}, "models[0].model.model: must be a folder or a Hub id, not None"),
    ({"models": [{"model": {"lora": "x"}}]}, "models[0].model.model: must be a folder or a Hub id, not None"),
    ({"models": [{"model": {"path": 5}}]}, "models[0].model.path: must be a folder or a Hub id, not 5"),
    ({"models": [{"model": {"model": None}}]}, "models[0].model.model: must be a folder or a Hub id, not None"),
    ({"models": [{"model": {"model": "a", "revision": "b"}}]}, "unknown key 'revision'"),
    ({}, "linear needs the parameter weight of"),
    ({"parameters": {"weight": 1, "normalize": "perhaps"}}, "normalize must be true or false"),
    ({"merge_method": "ties", "parameters": {"weight": 1}}, "ties needs a base_model"),
    ({"merge_method": "karcher", **BOTH}, "give one of tokenizer and tokenizer_source"),
    ({"merge_method": "passthrough"}, "passthrough takes exactly 1 model(s), not 2"),
    ({"chat_template": "nonsense", "parameters": {"weight": 1}}, "has no tokenizer to give it to"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_read_before_a_refusal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is of what is refused, reading a tensor fails it."""
    if "refused" in request.node.name or "slips" in request.node.name:

        def unread(*_: Any) -> None:
            raise AssertionError("a tensor was read")

        monkeypatch.setattr("prune.model.checkpoint._read_part", unread)


@pytest.mark.parametrize(("keys", "expected"), COMPLAINTS)
def test_slips_are_told_in_one_line(place: Path, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(PruneError) as caught:
        plan_of(place, **keys)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def sliced(place: Path, *ranges: list[int], method: str = "passthrough", **keys: Any) -> Any:
    slices = [{"sources": [{"model": str(place / "one"), "layer_range": own}]} for own in ranges]
    return prepare({"merge_method": method, "slices": slices, **keys})


def test_a_reversed_layer_range_is_refused(place: Path) -> None:
    with pytest.raises(PruneError, match=r"layer_range \[2, 1\] has no layers"):
        sliced(place, [2, 1])


def test_a_slice_out_of_range_is_refused(place: Path) -> None:
    with pytest.raises(PruneError, match=r"layer_range \[1, 4\] goes beyond the 3 layers"):
        sliced(place, [1, 4])


def test_all_weights_zero_is_refused_and_never_nan(place: Path) -> None:
    models = [{"model": str(place / name), "parameters": {"weight": 0}} for name in ("one", "two")]
    for method in ("ties", "task_arithmetic", "dare_ties"):
        with pytest.raises(PruneError, match="all weights are zero"):
            plan_of(place, merge_method=method, base_model=str(place / "base"), models=models)


def test_parameters_of_another_method_are_told_but_do_no_harm(place: Path) -> None:
    made = plan_of(place, parameters={"weight": 1, "density": 0.5, "int8_mask": True})
    assert len(made.warnings) == 2 and "linear has no parameter density" in made.warnings[0]


def test_parameters_that_are_the_same_for_all_are_told_at_a_model_and_do_no_harm(place: Path) -> None:
    own = {"weight": 1, "normalize": False, "int8_mask": True}
    models = [{"model": str(place / "one"), "parameters": own}, cases.weighted(str(place / "two"), 1)]
    made = plan_of(place, models=models)
    assert made.values["lm_head.weight"]["normalize"] is True and len(made.warnings) == 2
    assert "models[0].parameters.normalize: normalize is the same for all models" in made.warnings[0]


def test_a_slice_may_leave_its_residual_weight_empty_and_give_none(place: Path) -> None:
    own = {"sources": [{"model": str(place / "one"), "layer_range": [0, 3]}], "residual_weight": None}
    keys: dict[str, Any] = {"merge_method": "passthrough", "slices": [own]}
    assert prepare(keys).plan.layers == 3
    own["residual_weight"] = 0.5
    with pytest.raises(PruneError, match=r"slices\[0\].residual_weight: is not computed"):
        prepare(keys)


def test_anchors_and_aliases_of_a_merge_config_are_read(place: Path, tmp_path: Path) -> None:
    text = (
        f"merge_method: linear\nmodels:\n- &first\n  model: &who {place / 'one'}\n"
        "  parameters: &p {weight: &w [0.5, 1]}\n"
        "- *first\n- {model: *who, parameters: *p}\n- {model: *who, parameters: {weight: *w}}\n"
    )
    (tmp_path / "c.yml").write_text(text)
    made = prepare(tmp_path / "c.yml").plan
    assert made.values["model.layers.2.mlp.up_proj.weight"]["weight"] == [1, 1, 1, 1]
    (tmp_path / "c.yml").write_text(text.replace("weight: &w [0.5, 1]", "wieght: &w [0.5, 1]"))
    with pytest.raises(PruneError, match=r"c.yml:5:19 models\[0\].parameters.wieght"):
        prepare(tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: *b", "c.yml:1:4: the alias *b stands for nothing that was written before it"),
        ("a: &a [*a]", "the alias *a stands for nothing"),
        (
            "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            "aliases stand for more than 10000 values",
        ),
    ],
)
def test_aliases_of_nothing_and_of_too_much_are_refused(text: str, said: str) -> None:
    with pytest.raises(PruneError) as caught:
        parse_yaml(text, "c.yml", aliases=True)
    assert said in str(caught.value)


def test_density_outside_its_range_is_refused(place: Path) -> None:
    with pytest.raises(PruneError, match="from 0 to 1, not 1.5"):
        plan_of(place, merge_method="ties", base_model=str(place / "base"), parameters={"weight": 1, "density": 1.5})
    with pytest.raises(PruneError, match="must lie between 0 and 1"):
        plan_of(place, merge_method="della", base_model=str(place / "base"), parameters={"weight": 1, "density": 0.1})


def test_changing_depth_works_where_configs_have_a_list_per_layer(tmp_path: Path) -> None:
    module = tiny_model("qwen3", layer_types=["full_attention"] * 3)
    prune.save(prune.open(module), tmp_path / "one")
    merged = sliced(tmp_path, [0, 2], [1, 3]).model
    prune.save(merged, tmp_path / "out")
    config = prune.open(tmp_path / "out").config
    assert config.num_hidden_layers == 4 and len(config.layer_types) == 4
    for new, old in enumerate((0, 1, 1, 2)):
        found = merged.tensors.read(f"model.layers.{new}.mlp.up_proj.weight")
        assert torch.equal(found, module.state_dict()[f"model.layers.{old}.mlp.up_proj.weight"])


def test_relative_paths_lead_somewhere_from_here_and_from_the_configs_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "merge_method: linear\nmodels: [{model: one}, {model: two}]\nparameters: {weight: 1}\n"
    (place / "relative.yml").write_text(text)
    assert prune.merge(place / "relative.yml").tensors.parameters
    monkeypatch.chdir(place)
    assert prune.merge("relative.yml").tensors.parameters


def test_dare_without_a_seed_is_the_same_every_time_and_says_how(place: Path) -> None:
    keys: dict[str, Any] = {"merge_method": "dare_ties", "base_model": str(place / "base")}
    keys |= {"models": [{"model": str(place / "one"), "parameters": {"weight": 1, "density": 0.5}}]}
    one, two = prepare(keys), prepare(keys)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.model.tensors.read(name), two.model.tensors.read(name))
    assert one.record["masks"]["seed"] == 0 and "SFC64" in one.record["masks"]["rule"]
    other = prepare({**keys, "random_seed": 3})
    assert other.record["masks"]["seed"] == 3
    assert not torch.equal(other.model.tensors.read(name), one.model.tensors.read(name))


def test_bfloat16_is_a_type_to_store_and_not_to_compute_in(tmp_path: Path) -> None:
    place = cases.trio(tmp_path, "plain", "bfloat16")
    keys = cases.config("ties", place, "bfloat16")
    name = "model.layers.0.mlp.up_proj.weight"
    ours, peer = (prune.merge(keys, compat=how).tensors.read(name).double() for how in (None, "mergekit"))
    wide = prune.merge({**keys, "out_dtype": "float32"}).tensors.read(name).double()
    assert torch.equal(wide.bfloat16().double(), ours)
    near, far = (ours - wide).abs(), (peer - wide).abs()
    assert (near <= far).all() and (near < far).double().mean() > 0.05  # rounded once, and not at every step


def test_models_of_other_shapes_or_families_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    tiny_model("llama", intermediate_size=44).save_pretrained(tmp_path / "wide")
    with pytest.raises(PruneError, match=r"of shape \[48, 40\], and \[48, 44\]|of shape \[48, 44\], and \[48, 40\]"):
        plan_of(
            place, models=[{"model": str(place / "one")}, {"model": str(tmp_path / "wide")}], parameters={"weight": 1}
        )
    prune.save(prune.open(tiny_model("qwen3")), tmp_path / "other")
    with pytest.raises(PruneError, match="only models of one family merge"):
        plan_of(
            place, models=[{"model": str(place / "one")}, {"model": str(tmp_path / "other")}], parameters={"weight": 1}
        )


def test_models_whose_layers_differ_merge_when_their_shapes_agree(place: Path, tmp_path: Path) -> None:
    plan = {"layers.1.channels": list(range(24)), "layers.2.heads": [0, 2]}
    for name in ("base", "one", "two"):
        prune.save(prune.cut(prune.open(place / name), plan), tmp_path / name)
    keys = cases.config("ties", tmp_path, "float32")
    prune.save(prune.merge(keys), tmp_path / "out")
    merged = prune.open(tmp_path / "out")
    assert merged.config.model_type == "prune_llama"
    assert merged.tensors.info == prune.open(tmp_path / "one").tensors.info


def test_threads_and_order_do_not_change_a_bit(place: Path, tmp_path: Path) -> None:
    keys = cases.config("dare_ties", place, "float32")
    merged = prune.merge(keys)
    alone = {name: merged.tensors.read(name) for name in reversed([*merged.tensors.info])}
    for threads in (1, 4):
        from dataclasses import replace

        tensors = replace(merged.tensors, threads=threads)
        assert isinstance(tensors, Tensors)
        prune.save(replace(merged, tensors=tensors), tmp_path / f"out{threads}")
        written = prune.open(tmp_path / f"out{threads}").tensors
        assert all(torch.equal(written.read(name), own) for name, own in alone.items())
    one, four = ((tmp_path / f"out{threads}" / "model.safetensors").read_bytes() for threads in (1, 4))
    assert one == four


def test_errors_about_a_model_stand_where_the_config_names_it(place: Path, tmp_path: Path) -> None:
    def complaint(method: str, name: str, more: str = "") -> str:
        text = f"merge_method: {method}\nmodels:\n- model: {place / 'one'}\n- model: {name}\n{more}"
        (tmp_path / "c.yml").write_text(text)
        with pytest.raises(PruneError) as caught:
            prune.merge(tmp_path / "c.yml")
        return str(caught.value).removeprefix(f"{tmp_path}/")

    weight = "parameters: {weight: 1}\n"
    said = "c.yml:4:10 models[1].model: no model folder 'models/nobody'"
    assert complaint("linear", "models/nobody", weight).startswith(said)
    more = f"{weight}base_model: models/none\n"
    assert complaint("ties", str(place / "two"), more).startswith(
        "c.yml:6:13 base_model: no model folder 'models/none'"
    )
    prune.save(prune.open(tiny_model("qwen3")), tmp_path / "other")
    said = complaint("linear", str(tmp_path / "other"), weight)
    assert said.startswith("c.yml:4:10 models[1].model: ") and "only models of one family merge" in said
    prune.save(prune.open(tiny_model("llama", num_hidden_layers=2)), tmp_path / "short")
    said = complaint("linear", str(tmp_path / "short"), weight)
    assert said.startswith("c.yml:4:10 models[1].model: ") and "has 2 layers and the others 3" in said


def biased(folder: Path, seed: int, **changes: Any) -> Path:
    prune.save(prune.open(tiny_model("llama", seed=seed, **changes)), folder)
    return folder


@pytest.mark.parametrize("first", ["tied", "untied"])
def test_a_model_without_a_head_reads_its_embeddings_where_others_have_one(tmp_path: Path, first: str) -> None:
    for seed, name in enumerate(("tied", "untied")):
        biased(tmp_path / name, seed, tie_word_embeddings=name == "tied")
    order = [first, *({"tied", "untied"} - {first})]
    models = [cases.weighted(str(tmp_path / name), 0.5) for name in order]
    prepared = prepare({"merge_method": "linear", "models": models})
    (said,) = prepared.plan.warnings
    assert f"models[{order.index('tied')}].model" in said and "ties its head" in said
    prune.save(prepared.model, tmp_path / "out")
    out, tied, untied = (prune.open(tmp_path / name) for name in ("out", "tied", "untied"))
    assert out.config.tie_word_embeddings is False
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    expected = (tied.tensors.read(embeddings) + untied.tensors.read(head)) / 2
    torch.testing.assert_close(out.tensors.read(head), expected)
    ids = torch.tensor([[1, 5, 9]])
    alone = prepare(
        {
            "merge_method": "linear",
            "models": [cases.weighted(str(tmp_path / "tied"), 1.0), cases.weighted(str(tmp_path / "untied"), 0.0)],
        }
    )
    torch.testing.assert_close(prune.load(alone.model)(ids).logits, prune.load(tied)(ids).logits)


def test_tensors_that_only_one_model_has_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    odd = str(biased(tmp_path / "odd", 3, attention_bias=True))
    plain = str(place / "one")
    lost = r"'model.layers.0.self_attn.k_proj.bias' \(and 11 more\), which others have not, so it would be lost"
    said = r"models\[{}\].*has the tensor " + lost
    for number, order in enumerate(([odd, plain], [plain, odd])):
        models = [cases.weighted(name, 0.5) for name in order]
        keys: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": plain, "models": models}
        with pytest.raises(PruneError, match=said.format(number)):
            prepare(keys)
    with pytest.raises(PruneError, match="has no tensor 'model.layers.0.self_attn.k_proj.bias'"):
        prepare({"merge_method": "linear", "models": [cases.weighted(name, 0.5) for name in (odd, plain)]})


def test_slices_of_models_that_are_not_made_alike_are_refused(place: Path, tmp_path: Path) -> None:
    odd, wide = str(biased(tmp_path / "odd", 3, attention_bias=True)), str(biased(tmp_path / "wide", 3, hidden_size=56))
    plain = str(place / "one")

    def stacked(*names: str) -> Any:
        ranges = ([0, 2], [1, 3])
        sources = [{"sources": [{"model": name, "layer_range": own}]} for name, own in zip(names, ranges, strict=True)]
        return prepare({"merge_method": "passthrough", "slices": sources}).plan

    assert stacked(plain, str(place / "two")).layers == 4
    with pytest.raises(PruneError, match=r"slices\[1\]: 'model.layers.2.self_attn.k_proj.bias' .*it is not there"):
        stacked(plain, odd)
    with pytest.raises(PruneError, match=r"no slice gives 'model.layers.2.self_attn.q_proj.bias'"):
        stacked(odd, plain)
    with pytest.raises(PruneError, match="are not made alike"):
        stacked(plain, wide)
    both = [{"model": name, "layer_range": [0, 3], "parameters": {"weight": 0.5}} for name in (plain, odd)]
    with pytest.raises(
        PruneError, match=r"sources\[1\].model: .* has the tensor 'model.layers.0.self_attn.k_proj.bias'"
    ):
        prepare({"merge_method": "linear", "slices": [{"sources": both}]})
