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
# # A first prune: comparing two criteria
#
# A quarter of the heads and MLP channels of a small trained Llama are removed by two criteria: **magnitude**, which looks
# at the weights alone, and **Wanda**, which multiplies them with what flows through. Which one keeps the model better,
# and where do they disagree?
#
# The model and the text come with the package, so this runs anywhere in a few seconds.

# %%
import matplotlib.pyplot as plt

import prune

model = prune.open("bundled")
summary = prune.inspect(model)
print(f"{summary['parameters']:,} parameters, {summary['layers']} layers, {summary['heads']} heads in {summary['kv_heads']} groups")
for row in summary["groups"]:
    print(f"{row['kind']:12} {row['units']:>4} per layer, {row['parameters_share']:.0%} of the parameters")

# %% [markdown]
# ## Scores
#
# `prune.groups` says what must shrink together; `prune.score` gives one number per unit, high = keep. Both criteria score
# channels and heads; Wanda needs calibration text, read once for both kinds.

# %%
groups = prune.groups(model, ["channels", "heads"])
data = prune.batches("python-docs", model.tokenizer(), samples=16, length=128, seed=0)
scores = {
    "magnitude": prune.score(model, groups, criterion="magnitude"),
    "wanda": prune.score(model, groups, data, criterion="wanda"),
}

# %% [markdown]
# Scores per layer: each panel sorts a layer's channels, divided by the layer's mean. A curve that starts near zero has
# channels that hardly matter; a flat one has nothing to give.

# %%
layers = summary["layers"]
figure, panels = plt.subplots(1, layers, figsize=(12, 2.6), sharey=True, constrained_layout=True)
for layer, panel in enumerate(panels):
    for name, found in scores.items():
        values = found[f"layers.{layer}.channels"].sort().values
        panel.plot(values / values.mean(), label=name, linewidth=1.5)
    panel.axvline(len(values) / 4, color="grey", linewidth=0.8, linestyle=":")
    panel.set_title(f"layer {layer}", fontsize=10)
    panel.set_ylim(0, 3)
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("score / mean")
panels[0].legend(frameon=False, fontsize=9)
figure.supxlabel("channels, sorted; a quarter lies left of the dotted line", fontsize=10)
plt.show()

# %% [markdown]
# ## Cutting
#
# `prune.choose` turns scores into a plan, `prune.cut` into a smaller model. A cut is lazy: nothing is read until it is
# saved or walked. `prune.prove` checks that slicing units away equals masking them in the original.

# %%
small = {}
for name, found in scores.items():
    plan = prune.choose(model, groups, found, ratio=0.25)
    small[name] = prune.cut(model, plan)
    proof = prune.prove(model, plan, small[name], data[0])
    print(f"{name:10} largest difference of masked and sliced layers: {proof['max_relative_difference']:.1e}")

# %% [markdown]
# ## Which is better?
#
# Perplexity on text that neither the model nor the calibration saw; random removal is the baseline. Large weights are
# not the ones that matter: by magnitude this model loses more than by chance, while looking at what flows through the
# weights keeps most of it.

# %%
small["random"] = prune.cut(model, prune.choose(model, groups, prune.score(model, groups, criterion="random"), ratio=0.25))
result = prune.evaluate({"original": model, **small}, perplexity="python-docs", samples=16, length=128)
perplexity = {name: result["perplexity"][name] for name in ["original", "wanda", "magnitude", "random"]}

figure, panel = plt.subplots(figsize=(6, 2.4), constrained_layout=True)
bars = panel.barh(list(perplexity), list(perplexity.values()), color=["#888", "#2a7", "#27a", "#c55"])
panel.bar_label(bars, fmt="%.1f", padding=4)
panel.set_xscale("log")
panel.set_xlim(1, max(perplexity.values()) * 2)
panel.invert_yaxis()
panel.spines[["top", "right"]].set_visible(False)
panel.set_xlabel(f"perplexity, {result['perplexity']['tokens']:,} held-out tokens, windows of 128 (log scale)")
plt.show()

# %%
assert perplexity["wanda"] < min(perplexity["magnitude"], perplexity["random"])

# %% [markdown]
# ## Keeping it
#
# The winner is saved as a stock checkpoint: `AutoModelForCausalLM.from_pretrained` needs no `prune`.

# %%
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

folder = prune.save(small["wanda"], Path(tempfile.mkdtemp()) / "small")
loaded = AutoModelForCausalLM.from_pretrained(folder)
print(type(loaded).__name__, f"{loaded.num_parameters():,} parameters")
print("every file as it was written:", prune.verify(folder) == [])
