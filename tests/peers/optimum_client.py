"""Runs where optimum-onnx is: `python optimum_client.py JOBS`, a JSON list of {"kind", "folder", "ids", "mask"}; prints
a JSON list of {"tokens"}, {"logits"} or {"error"}. Kinds: "onnx-lm", "onnx-classifier", "hf-lm", "hf-classifier".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

LOADERS = {
    "onnx-lm": ORTModelForCausalLM,
    "onnx-classifier": ORTModelForSequenceClassification,
    "hf-lm": AutoModelForCausalLM,
    "hf-classifier": AutoModelForSequenceClassification,
}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    ids, mask = torch.tensor(job["ids"]), torch.tensor(job["mask"])
    try:
        model = LOADERS[job["kind"]].from_pretrained(job["folder"])
        if job["kind"].endswith("classifier"):
            types = {"token_type_ids": torch.zeros_like(ids)}
            return {"logits": model(input_ids=ids, attention_mask=mask, **types).logits.tolist()}
        given = {"input_ids": ids, "attention_mask": mask, "pad_token_id": 0}
        found = model.generate(**given, max_new_tokens=20, do_sample=False, eos_token_id=None)
        said = {"tokens": found[:, ids.shape[1] :].tolist()}
        if (Path(job["folder"]) / "tokenizer.json").exists():
            said["words"] = PreTrainedTokenizerFast.from_pretrained(job["folder"])("def f(x): return x")["input_ids"]
        return said
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side is told
        return {"error": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    print(json.dumps([answer(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
