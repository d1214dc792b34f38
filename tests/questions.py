"""Made-up examination questions in Korean, as KMMLU's files have them."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path

KINDS = (
    ("더한 값은", lambda a, b: a + b),
    ("곱한 값은", lambda a, b: a * b),
    ("뺀 값은", lambda a, b: a - b),
)
FIRST = ("question", "answer", "A", "B", "C", "D")
LAST = ("Category", "Human Accuracy")


def rows(subject: str, count: int, *, seed: int = 0, padding: str = "") -> list[dict[str, object]]:
    """Sums with four answers, one of them right; `padding` stands before each question."""
    rng = random.Random(f"{subject} {int(seed)}")
    made = []
    for _ in range(count):
        (words, work), a, b = rng.choice(KINDS), rng.randrange(20, 90), rng.randrange(2, 20)
        right, answer = work(a, b), rng.randrange(4)
        texts = [f"{right + step}" for step in rng.sample(range(1, 9), 4)]
        texts[answer] = str(right)
        question = f"{padding}{subject}: {a}과(와) {b}을(를) {words} 얼마인가? "
        made.append({"question": question, "answer": answer + 1, **dict(zip("ABCD", texts, strict=True))})
    return made


def write(folder: Path, subjects: Iterable[str], *, count: int = 6, solved: int = 5, padding: str = "") -> Path:
    """The dev and test files of subjects, in one folder."""
    for number, subject in enumerate(subjects):
        for split, size in (("dev", solved), ("test", count)):
            last = LAST if number % 2 else tuple(reversed(LAST))  # KMMLU has both orders
            with (folder / f"{subject}-{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, [*FIRST, *last])
                writer.writeheader()
                for row in rows(subject, size, seed=split == "dev", padding=padding):
                    writer.writerow({**row, "Category": subject, "Human Accuracy": 0.5})
    return folder
