"""Recipes: YAML in, checked calls out, and the loop that runs, records and resumes them."""

from prune.recipe.loop import Parts, Result, apply, check

__all__ = ["Parts", "Result", "apply", "check"]
