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
# # Comparing criteria
#
# Which units can go? A criterion answers with one number per unit, high = keep. This notebook puts seven of them beside
# each other on the bundled model: how much they agree, and what each loses as more goes.
#
# [A first prune](first_prune.ipynb) explains the steps one by one.

# %%
import matplotlib.pyplot as plt
import numpy as np

import prune

model = prune.open("bundled")
groups = prune.groups(model, ["channels", "heads"])
data = prune.batches("python-docs", model.tokenizer(), samples=8, length=128, seed=0)

criteria = ["random", "magnitude", "activation", "wanda", "flap", "taylor", "obs"]
scores = {name: prune.score(model, groups, None if name in ("random", "magnitude") else data, criterion=name) for name in criteria}

# %% [markdown]
# ## How much they agree
#
# The rank correlation of channel scores, averaged over layers. What looks at the data agrees with itself; weights alone
# say something else.


# %%
def ranks(name):
    found = [scores[name][group.name] for group in groups if group.kind == "channels"]
    return np.stack([values.argsort().argsort().numpy() for values in found])  # (layers, channels)


agreement = np.zeros((len(criteria), len(criteria)))
for row, one in enumerate(criteria):
    for column, other in enumerate(criteria):
        agreement[row, column] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ranks(one), ranks(other))])

figure, panel = plt.subplots(figsize=(5.4, 4.4), constrained_layout=True)
image = panel.imshow(agreement, cmap="RdBu_r", vmin=-1, vmax=1)
panel.set_xticks(range(len(criteria)), criteria, rotation=40, ha="right")
panel.set_yticks(range(len(criteria)), criteria)
for (row, column), value in np.ndenumerate(agreement):
    panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
panel.spines[:].set_visible(False)
figure.colorbar(image, label="rank correlation", shrink=0.8)
plt.show()

# %% [markdown]
# ## What each loses
#
# A quarter and a half of the heads and channels go, and nothing is mended: perplexity on text that neither the model nor
# the criteria saw.

# %%
ratios = [0.25, 0.5]
small = {
    f"{name} {ratio}": prune.cut(model, prune.choose(model, groups, scores[name], ratio=ratio))
    for name in criteria
    for ratio in ratios
}
found = prune.evaluate({"original": model, **small}, perplexity="python-docs", samples=6, length=128)["perplexity"]

figure, panel = plt.subplots(figsize=(6.4, 3), constrained_layout=True)
order = sorted(criteria, key=lambda name: found[f"{name} 0.25"])
for ratio, colour in zip(ratios, ["#0b7a6f", "#cf4a12"]):
    values = [found[f"{name} {ratio}"] for name in order]
    panel.plot(values, order, "o", color=colour, label=f"{ratio:.0%} removed")
panel.axvline(found["original"], color="grey", linestyle=":", label="original")
panel.set_xscale("log")
panel.invert_yaxis()
panel.grid(axis="x", alpha=0.3)
panel.spines[["top", "right", "left"]].set_visible(False)
panel.set_xlabel(f"perplexity, {found['tokens']:,} held-out tokens, windows of 128 (log scale)")
panel.legend(frameon=False, fontsize=9)
plt.show()

# %%
assert found["wanda 0.25"] < found["random 0.25"]
