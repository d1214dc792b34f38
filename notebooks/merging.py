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
# # Merging
#
# Two models that were fine-tuned from the same base, each on text of its own, become one that knows both. No data and no
# training: the weights alone are combined, by methods and configs as mergekit has them.

# %%
import json
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import prune

place = Path(tempfile.mkdtemp())
chance = random.Random(0)
sums = [f"{a} + {b} = {a + b}" for a, b in ((chance.randrange(50), chance.randrange(50)) for _ in range(6000))]
names = ["anna", "ben", "chen", "dora", "emil"]
records = [json.dumps({"name": chance.choice(names), "age": chance.randrange(20, 60)}) for _ in range(3000)]
texts = {"sums": sums, "records": records}
for name, lines in texts.items():
    half = len(lines) * 4 // 5
    (place / f"{name}.txt").write_text("\n".join(lines[:half]))
    (place / f"{name}-unseen.txt").write_text("\n".join(lines[half:]))
    print(lines[0])

# %% [markdown]
# ## Two fine-tunes
#
# The bundled model, trained for a few steps on each text by a recipe of one step.

# %%
for name in texts:
    train = {"data": str(place / f"{name}.txt"), "steps": 20, "length": 48, "batch_size": 8, "evaluate_every": 20}
    prune.apply({"model": "bundled", "output": str(place / name), "steps": [{"train": train}]})

# %% [markdown]
# ## One model of both
#
# A merge is a config; `prune.merge` gives a lazy model that is computed when it is saved or walked.

# %%
base, tuned = prune.open("bundled"), [str(place / name) for name in texts]


def merged(method, **parameters):
    models = [{"model": path, "parameters": {"weight": 1.0 if method != "linear" else 0.5, **parameters}} for path in tuned]
    config = {"merge_method": method, "models": models, "dtype": "float32"}
    return prune.merge(config if method == "linear" else {**config, "base_model": "base"}, models={"base": base})


models = {
    "base": base,
    **{f"tuned on {name}": prune.open(place / name) for name in texts},
    "linear": merged("linear"),
    "task arithmetic": merged("task_arithmetic"),
    "ties": merged("ties", density=0.6),
}
found = {
    name: prune.evaluate(models, perplexity=str(place / f"{name}-unseen.txt"), samples=8, length=64)["perplexity"]
    for name in texts
}

# %%
figure, panel = plt.subplots(figsize=(6, 4), constrained_layout=True)
marks = dict(zip(models, [("o", "#8a949d"), ("<", "#7a4fb5"), ("v", "#7a4fb5"), ("o", "#0b7a6f"), ("s", "#0b7a6f"), ("D", "#0b7a6f")]))
for name, (mark, colour) in marks.items():
    panel.scatter(*(found[text][name] for text in texts), s=60, marker=mark, color=colour, alpha=0.8, label=name)
panel.legend(frameon=False, fontsize=9)
panel.set_xscale("log")
panel.set_yscale("log")
panel.margins(0.25)
panel.set_xlabel("perplexity on sums (log scale)")
panel.set_ylabel("perplexity on records (log scale)")
panel.spines[["top", "right"]].set_visible(False)
panel.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Down and to the left is better: a merge is better than each fine-tune on the other's text, and better than the base on
# both.

# %%
for text in texts:
    assert found[text]["task arithmetic"] < found[text]["base"]

folder = prune.save(models["task arithmetic"], place / "merged")
print("every file as it was written:", prune.verify(folder) == [])
