"""The walk gives what the whole model gives, to the last bit, with one layer in memory."""

from __future__ import annotations

import pytest
import torch

from prune.errors import PruneError
from prune.model.open import open as open_model
from prune.model.walk import logits, walk
from tests.tiny import FAMILIES, padded_batch, tiny_model, token_ids

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_plain_forward(family: str, dtype: torch.dtype, device: str) -> None:
    module = tiny_model(family, dtype=dtype, tie_word_embeddings=family == "qwen2").to(device)
    batches = [padded_batch(0), {"input_ids": token_ids(3, 9)}]
    for batch, found in zip(batches, logits(open_model(module), batches, device=device), strict=True):
        with torch.no_grad():
            expected = module(**{key: value.to(device) for key, value in batch.items()}).logits
        text = batch.get("attention_mask", torch.ones(expected.shape[:2])).bool()
        assert found.dtype == dtype
        assert torch.equal(found[text], expected[text])


def test_a_sliding_window_is_honoured() -> None:
    module = tiny_model("mistral", sliding_window=4)
    batch = {"input_ids": token_ids(2, 12)}
    with torch.no_grad():
        expected = module(**batch).logits
    assert torch.equal(next(logits(open_model(module), [batch])), expected)


def test_layers_of_different_types_get_their_own_masks() -> None:
    module = tiny_model(
        "qwen2",
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    )
    batch = {"input_ids": token_ids(2, 12)}
    with torch.no_grad():
        expected = module(**batch).logits
    assert torch.equal(next(logits(open_model(module), [batch])), expected)


def test_one_layer_is_filled_at_a_time() -> None:
    model = open_model(tiny_model("llama"))
    seen = []
    for visit in walk(model, [{"input_ids": token_ids(1, 4)}], head=True):
        seen.append(visit.module)
        filled = [all(not p.is_meta for p in layer.parameters()) for layer in seen[:-1]]
        assert not any(filled)
        if visit.index < 3:
            assert all(not p.is_meta for p in visit.module.parameters())
    assert len(seen) == 4


def test_computing_in_another_type_leaves_the_model_as_it_was() -> None:
    module = tiny_model("llama", dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch = {"input_ids": token_ids(1, 8)}
    found = next(logits(open_model(module), [batch], dtype=torch.float32))
    with torch.no_grad():
        expected = module.float()(**batch).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.equal(module.state_dict()[name].bfloat16(), tensor) for name, tensor in before.items())


def test_what_a_visit_puts_out_goes_on_to_the_next_layer() -> None:
    model = open_model(tiny_model("llama"))
    batch = {"input_ids": token_ids(1, 8)}
    for visit in walk(model, [batch]):
        if visit.index == 1:
            visit.outputs = visit.inputs
            passed = visit.inputs[0]
        if visit.index == 2:
            assert visit.inputs[0] is passed


def test_hidden_states_that_are_not_finite_name_the_layer() -> None:
    module = tiny_model("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(PruneError, match=r"leave model\.layers\.1 are not finite"):
        list(walk(open_model(module), [{"input_ids": token_ids(1, 8)}]))


def test_tokens_of_another_model_are_refused() -> None:
    with pytest.raises(PruneError, match="token id 96 is not among the model's 96"):
        list(walk(open_model(tiny_model("llama")), [{"input_ids": torch.tensor([[1, 96]])}]))
