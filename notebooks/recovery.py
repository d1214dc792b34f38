# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prune, distil, export
#
# A third of the channels and a quarter of the heads go, which costs some quality; a little **distillation** from the
# original brings much of it back; the result is exported to ONNX. One recipe does it all, and leaves a report.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import prune

output = Path(tempfile.mkdtemp()) / "small"
recipe = {
    "model": "bundled",
    "output": str(output),
    "calibration": {"data": "python-docs", "samples": 16, "length": 128},
    "steps": [
        {"remove": {"what": ["channels", "heads"], "ratio": 0.33, "criterion": "wanda"}},
        {"evaluate": {"perplexity": "python-docs", "samples": 8, "length": 128}},
        {"distill": {"loss": "logits", "steps": 24, "data": "python-docs", "length": 64, "batch_size": 4, "evaluate_every": 6}},
        {"evaluate": {"perplexity": "python-docs", "samples": 8, "length": 128}},
        {"export": {"format": "onnx"}},
    ],
}
result = prune.apply(recipe)
print([step["word"] for step in result.steps])

# %% [markdown]
# ## Recovery
#
# The loss falls on text that is trained on and on text that is not; the weights that were best on the latter are kept. The
# training loss is the objective's own, teacher and text together, so the two curves are not on one scale.

# %%
training = result.steps[2]["record"]["training"]
curve = training["curve"]
figure, panels = plt.subplots(1, 2, figsize=(9, 2.9), constrained_layout=True, width_ratios=[1.4, 1])
panels[0].plot([p["step"] for p in curve if p["loss"] is not None], [p["loss"] for p in curve if p["loss"] is not None], color="#8a949d", label="training")
looks = [(p["step"], p["held_out"]) for p in curve if p["held_out"] is not None]
panels[0].plot(*zip(*looks), "o-", color="#0b7a6f", label="held out")
panels[0].set_xlabel("step")
panels[0].set_ylabel("loss")
panels[0].legend(frameon=False)

cut, mended = (step["record"]["perplexity"] for step in result.steps if "perplexity" in step["record"])
values = {"original": cut["before"], "pruned": cut["after"], "distilled": mended["after"]}
bars = panels[1].bar(list(values), list(values.values()), color=["#8a949d", "#cf4a12", "#0b7a6f"])
panels[1].bar_label(bars, fmt="%.1f", padding=3)
panels[1].set_ylabel("perplexity")
panels[1].margins(y=0.15)
for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
assert values["distilled"] < values["pruned"]

# %% [markdown]
# ## Using it
#
# A stock checkpoint, which needs no `prune`, and an ONNX graph that agreed with PyTorch before it was written.

# %%
import onnxruntime
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
ids = tokenizer("import json\n\ndef read(path):\n", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0]))
session = onnxruntime.InferenceSession(output / "onnx" / "model.onnx")
print("ONNX:", [put.name for put in session.get_inputs()][:3], "...")

# %% [markdown]
# ## The report
#
# `report/index.html` shows it all on one page; each plot also lies beside it, with its numbers.

# %%
print(*sorted(path.name for path in (output / "report").iterdir()), sep="\n")
