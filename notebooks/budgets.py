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
# # Sensitivity and budgets
#
# Layers do not matter equally. **Sensitivity** shrinks one group at a time and looks at what predictions lose; a
# **budget** says how small the model is to be, and finds out how much of what goes where.

# %%
import matplotlib.pyplot as plt

import prune
from prune.remove.sensitivity import sensitivity

model = prune.open("bundled")
data = prune.batches("python-docs", model.tokenizer(), samples=2, length=128, seed=0)
points = sensitivity(model, data, what=["channels", "heads", "layers"], ratios=(0.5,), criterion="wanda")

# %% [markdown]
# ## One group at a time
#
# The KL divergence from the whole model's predictions when half of a group is gone, all else whole; on the right, when a
# whole layer is.

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), constrained_layout=True, sharey=True)
for panel, kind in zip(panels, ["channels", "heads", "layers"]):
    own = [point for point in points if point.kind == kind and (kind == "layers" or point.removed * 2 == point.units)]
    panel.bar([str(point.layer) for point in own], [point.divergence for point in own], color="#0b7a6f")
    panel.set_title("a layer dropped" if kind == "layers" else f"half of the {kind} gone", fontsize=10)
    panel.set_xlabel("layer")
    panel.set_yscale("log")
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("KL divergence, nats")
plt.show()

# %% [markdown]
# ## A budget
#
# Four fifths of the parameters may stay. `uniform: true` removes as much from every layer, which stays a stock
# checkpoint; `false` spends where it costs least and loads with `prune.load`. For comparison, a plain ratio that gives
# about the same size. On so little text the uniform shape that is chosen can be worse than the plain ratio (here it is); spending by layer pays.

# %%
import tempfile
from pathlib import Path

place = Path(tempfile.mkdtemp())


def run(name, **remove):
    recipe = {
        "model": "bundled",
        "output": str(place / name),
        "calibration": {"data": "python-docs", "samples": 8, "length": 128},
        "steps": [
            {"remove": {"what": ["channels", "heads"], "criterion": "obs", **remove}},
            {"evaluate": {"perplexity": "python-docs", "samples": 8, "length": 128}},
        ],
    }
    return prune.apply(recipe)


results = {
    "ratio": run("ratio", ratio=0.25),
    "budget, uniform": run("uniform", budget={"params": 0.8}),
    "budget, by layer": run("layers", budget={"params": 0.8}, uniform=False),
}
for name, result in results.items():
    removed, measured = (step["record"] for step in result.steps)
    before, after = removed["parameters"]
    print(f"{name:18} {after / before:.0%} of the parameters, perplexity {measured['perplexity']['after']:.1f}, {removed['saved_as']}")

# %% [markdown]
# What stayed in each layer:

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 2.8), constrained_layout=True)
for panel, kind in zip(panels, ["channels", "kv_heads"]):
    for number, (name, result) in enumerate(results.items()):
        kept = result.steps[0]["record"]["shape"][1][kind]
        panel.bar([layer + 0.27 * (number - 1) for layer in range(len(kept))], kept, width=0.25, label=name, color=["#8a949d", "#0b7a6f", "#7a4fb5"][number])
    panel.set_title(kind.replace("kv_", "key-value "), fontsize=10)
    panel.set_xlabel("layer")
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("kept")
figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3, loc="outside upper center")
plt.show()

# %% [markdown]
# `prune report` compares the runs on one page, with perplexity against parameters:

# %%
from prune.report.write import compared

page = compared([place / "ratio", place / "uniform", place / "layers"], place / "comparison.html")
print(f"{page.name}: {page.stat().st_size / 1000:.0f} kB")
