"""A few prompts continued, for a person to read: greedy, so that the same model says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from prune.progress import Advance, nothing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def generate(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens: int = 48,
    advance: Advance = nothing,
) -> list[str]:
    """What a model says after each prompt, the prompt left out: at most `tokens` tokens, each the likeliest.

    It ends early at the end token. The model's own generation settings are not used, since they may draw at random.
    """
    encoder = bool(module.config.is_encoder_decoder)
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        decoder_start_token_id=getattr(module.config, "decoder_start_token_id", None) if encoder else None,
    )
    said = []
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt", verbose=False).to(module.device)
        taken = {name: given[name] for name in ("input_ids", "attention_mask")}
        run: Any = module.generate
        output = run(**taken, generation_config=settings)[0]
        new = output if encoder else output[taken["input_ids"].shape[1] :]
        said.append(str(tokenizer.decode(new, skip_special_tokens=True)))
        advance()
    return said
