"""`python -m prune.recipe.worker`: a process that a run starts for a step that uses several."""

from __future__ import annotations

from prune.progress import silence_others, silenced
from prune.recipe.follow import take_part
from prune.recipe.loop import default_parts
from prune.recipe.processes import follow


def main() -> None:
    silence_others()
    parts = default_parts()
    with silenced():
        follow(lambda message: take_part(message, parts))


if __name__ == "__main__":
    main()
