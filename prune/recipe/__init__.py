"""Recipes: YAML in, checked calls out, and the loop that runs, records and resumes them."""
