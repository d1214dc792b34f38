"""Makes transformers' Auto classes know the non-uniform types of every family."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from prune.model import family as families
from prune.model.nonuniform import config_class, model_class

AUTO = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForPreTraining",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
)


def register() -> None:
    """Register every family's non-uniform config, classes and tokenizer; doing it twice changes nothing."""
    for name in families.names():
        if not families.of(name).differing:
            continue
        stock, own = CONFIG_MAPPING[name], config_class(name)
        AutoConfig.register(own.model_type, own, exist_ok=True)
        if stock in TOKENIZER_MAPPING:
            slow, fast = _pair(TOKENIZER_MAPPING[stock])
            AutoTokenizer.register(own, slow_tokenizer_class=slow, fast_tokenizer_class=fast, exist_ok=True)
        for auto in (getattr(transformers, auto) for auto in AUTO):
            for architecture in classes(auto, stock):
                auto.register(own, model_class(name, architecture), exist_ok=True)


def _pair(found: Any) -> tuple[Any, Any]:
    return found if isinstance(found, tuple) else (None, found)


def classes(auto: Any, config: type[PreTrainedConfig]) -> tuple[type[PreTrainedModel], ...]:
    """The classes that an Auto class takes for a config."""
    found = auto._model_mapping.get(config, ())
    return found if isinstance(found, tuple) else (found,)
