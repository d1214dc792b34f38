"""A client of llama.cpp in a process of its own: a request as JSON on stdin, what llama.cpp says on stdout.

The request: model (a path), prompts (lists of token ids), count (tokens to generate greedily), texts (to tokenise),
messages (to lay out by the chat template).
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

import xllamacpp


def server(path: str) -> str:
    """The address of a server of this model: float32 cache, no flash attention, one thread."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 0  # what the file says
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.swa_full = True
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    held.append(xllamacpp.Server(params))
    return str(held[0].listening_address)


held: list[Any] = []


def call(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def generated(address: str, prompt: list[int], count: int) -> dict[str, Any]:
    options = {"n_predict": count, "temperature": 0, "samplers": ["top_k"], "top_k": 1, "return_tokens": True}
    said = call(address, "/completion", {"prompt": prompt, "cache_prompt": False, "n_probs": 20, **options})
    steps = [
        {str(top["id"]): top["logprob"] for top in step["top_logprobs"]} for step in said["completion_probabilities"]
    ]
    return {"tokens": said["tokens"], "logprobs": steps}


def main() -> None:
    request = json.load(sys.stdin)
    address = server(request["model"])
    answers = [generated(address, prompt, request["count"]) for prompt in request.get("prompts", [])]
    texts = [
        call(address, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        for text in request.get("texts", [])
    ]
    messages = request.get("messages")
    chat = call(address, "/apply-template", {"messages": messages})["prompt"] if messages else ""
    print("\n" + json.dumps({"answers": answers, "texts": texts, "chat": chat}))


if __name__ == "__main__":
    main()
