"""On a trained model the criteria earn their place: Wanda beats magnitude and chance."""

from __future__ import annotations

import pytest

import prune


@pytest.fixture(scope="module")
def perplexities() -> dict[str, float]:
    """Held-out perplexity of the bundled model after the quickstart's cut, by each criterion."""
    model = prune.open("bundled")
    found = prune.groups(model, ["channels", "heads"])
    data = prune.batches("python-docs", model.tokenizer(), samples=16, length=256, seed=0)
    models = {"dense": model}
    for criterion in ("wanda", "magnitude", "random"):
        scores = prune.score(model, found, data, criterion=criterion)
        models[criterion] = prune.cut(model, prune.choose(model, found, scores, ratio=0.25))
    result = prune.evaluate(models, perplexity="python-docs", samples=24, length=256)["perplexity"]
    return {name: result[name] for name in models}


def test_wanda_beats_magnitude_and_random(perplexities: dict[str, float]) -> None:
    assert perplexities["dense"] < perplexities["wanda"]
    assert perplexities["wanda"] < perplexities["magnitude"]
    assert perplexities["wanda"] < perplexities["random"]
