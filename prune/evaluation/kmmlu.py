"""KMMLU, 45 subjects of Korean examinations with four choices each. https://arxiv.org/abs/2402.11548."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune import data
from prune.errors import PruneError, unknown
from prune.evaluation.choices import Answered, Question, answer
from prune.files import sha256
from prune.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB = "HAERAE-HUB/KMMLU"
FOUND = "found"  # in place of subjects: those that a local folder holds
LETTERS = "ABCD"
CHOICES = tuple(f" {letter}" for letter in LETTERS)
GROUPS: dict[str, tuple[str, ...]] = {
    "STEM": (
        "Biology",
        "Chemical-Engineering",
        "Chemistry",
        "Civil-Engineering",
        "Computer-Science",
        "Ecology",
        "Electrical-Engineering",
        "Information-Technology",
        "Materials-Engineering",
        "Math",
        "Mechanical-Engineering",
    ),
    "Applied Science": (
        "Aviation-Engineering-and-Maintenance",
        "Electronics-Engineering",
        "Energy-Management",
        "Environmental-Science",
        "Gas-Technology-and-Engineering",
        "Geomatics",
        "Industrial-Engineer",
        "Machine-Design-and-Manufacturing",
        "Maritime-Engineering",
        "Nondestructive-Testing",
        "Railway-and-Automotive-Engineering",
        "Telecommunications-and-Wireless-Technology",
    ),
    "HUMSS": (
        "Accounting",
        "Criminal-Law",
        "Economics",
        "Education",
        "Korean-History",
        "Law",
        "Management",
        "Political-Science-and-Sociology",
        "Psychology",
        "Social-Welfare",
        "Taxation",
    ),
    "Other": (
        "Agricultural-Sciences",
        "Construction",
        "Fashion",
        "Food-Processing",
        "Health",
        "Interior-Architecture-and-Design",
        "Marketing",
        "Patent",
        "Public-Safety",
        "Real-Estate",
        "Refrigerating-Machinery",
    ),
}
EACH = 778  # questions of a subject on average; 35,030 of all 45
SUBJECTS = tuple(sorted(name for names in GROUPS.values() for name in names))
Row = Mapping[str, Any]  # question, answer (1 to 4), A, B, C, D


@dataclass(frozen=True)
class Subject:
    """One subject's questions, and the solved ones that may stand before each (5 in the dev split)."""

    name: str
    solved: tuple[Row, ...]
    asked: tuple[Row, ...]


def read(
    source: str | Path = HUB,
    *,
    subjects: Sequence[str] | str | None = None,
    shots: int = 5,
    limit: int | None = None,
) -> list[Subject]:
    """The subjects asked for (all 45 when left out), of a local folder of CSV files or a Hub dataset.

    `limit` is the most questions of each. Raises PruneError as `check` does, and for rows that are no such questions.
    """
    chosen = check(source, subjects=subjects, shots=shots)
    return [_read(source, name, shots, limit) for name in chosen]


def check(source: str | Path, *, subjects: Sequence[str] | str | None, shots: int) -> list[str]:
    """The subjects that `read` will give; PruneError for unknown names, missing files, or too many shots for them."""
    folder = _folder(source)
    if subjects == FOUND:
        chosen = [name for name in SUBJECTS if folder is None or _file(folder, name, "test")]
    else:
        asked = SUBJECTS if subjects is None else [subjects] if isinstance(subjects, str) else subjects
        chosen = [_named(name) for name in asked]
    if folder is not None:
        _refuse_missing(folder, chosen, [*(["dev"] if shots else []), "test"], everything=subjects is None)
    if not chosen:
        raise PruneError("no subject is there", where=str(source))
    return sorted(set(chosen))


def is_local(source: str | Path) -> bool:
    """Whether the questions lie in a folder here."""
    return _folder(source) is not None


def fingerprint(source: str | Path, chosen: Iterable[str]) -> Any:
    """What tells one set of questions from another: the hashes of the files of the subjects `chosen`, or the Hub id."""
    folder = _folder(source)
    if folder is None:
        return data.fingerprint(str(source))
    found = {(name, split): _file(folder, name, split) for name in chosen for split in ("dev", "test")}
    return {f"{name} {split}": sha256(path) for (name, split), path in found.items() if path}


def prompt(row: Row) -> str:
    """A question with its choices, up to where the answer's letter is to stand."""
    lines = [str(row["question"]).strip(), *(f"{letter}. {row[letter]}" for letter in LETTERS), "정답："]
    return "\n".join(lines)


def questions(subject: Subject, shots: int) -> list[Question]:
    """What the model sees: `shots` solved questions in their order, blank lines between, and the one that is asked."""
    solved = "".join(f"{prompt(row)}{CHOICES[int(row['answer']) - 1]}\n\n" for row in subject.solved[:shots])
    return [Question(solved + prompt(row), CHOICES, int(row["answer"]) - 1) for row in subject.asked]


def kmmlu(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    *,
    shots: int = 5,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a model scores with `shots` solved questions before each; see `summary`. Each subject's are read once."""
    total = sum(len(subject.asked) for subject in subjects) * len(CHOICES)
    answers: dict[str, list[Answered]] = {}
    with (progress or Progress(quiet=True)).track(f"kmmlu, {shots}-shot", total) as advance:
        for subject in subjects:
            asked = questions(subject, shots)
            answers[subject.name] = answer(module, tokenizer, asked, batch_size=batch_size, advance=advance)
    right = {name: [found.correct for found in own] for name, own in answers.items()}
    return summary(right, subjects, shots=shots)


def summary(right: Mapping[str, Sequence[bool]], subjects: Sequence[Subject], *, shots: int) -> dict[str, Any]:
    """The scores of `right`, subject -> whether each question was answered so, as shares of 1.

    `micro` counts questions alike, as lm-eval does; `macro` subjects, as the paper does, within each group too.
    `majority` is what the most frequent answer of all questions would score, `error` the standard error of `micro`.
    """
    counts = {name: {"correct": sum(own), "questions": len(own)} for name, own in right.items()}
    given = Counter(int(row["answer"]) for subject in subjects for row in subject.asked)
    everything = _averages(counts)
    often = max(given, key=lambda choice: (given[choice], choice))
    return {
        "shots": shots,
        **everything,
        "error": (everything["micro"] * (1 - everything["micro"]) / everything["questions"]) ** 0.5,
        "majority": given[often] / everything["questions"],
        "majority_answer": LETTERS[often - 1],
        "groups": {
            name: {**found, "subjects": sorted(_among(counts, own))}
            for name, own in GROUPS.items()
            if (found := _averages(_among(counts, own)))
        },
        "subjects": {name: counts[name] for name in sorted(counts)},
    }


def _among(counts: Mapping[str, dict[str, int]], names: Iterable[str]) -> dict[str, dict[str, int]]:
    return {name: counts[name] for name in names if name in counts}


def _averages(counts: Mapping[str, dict[str, int]]) -> dict[str, Any]:
    if not counts:
        return {}
    correct, asked = (sum(own[key] for own in counts.values()) for key in ("correct", "questions"))
    shares = [own["correct"] / own["questions"] for own in counts.values()]
    return {"micro": correct / asked, "macro": sum(shares) / len(shares), "correct": correct, "questions": asked}


def _named(name: str) -> str:
    """A subject by its name, however it is written: Korean-History, korean_history, Korean History."""
    known = {_plain(subject): subject for subject in SUBJECTS}
    if _plain(name) not in known:
        raise unknown("subject", name, SUBJECTS).at("subjects")
    return known[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", "-", name.strip().lower())


def _folder(source: str | Path) -> Path | None:
    """The local folder, or None for a Hub id. PruneError for what is neither."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path / "data" if (path / "data").is_dir() else path  # as the Hub's own repository has it
    if path.exists() or isinstance(source, Path) or not data.HUB_ID.fullmatch(source):
        raise PruneError("no such folder; give one of CSV files, or a Hub dataset as owner/name", where=str(source))
    return None


def _file(folder: Path, subject: str, split: str) -> Path | None:
    """SUBJECT-SPLIT.csv, in whatever case and with - or _ between."""
    wanted = _plain(f"{subject}-{split}")
    return next((path for path in sorted(folder.glob("*.csv")) if _plain(path.stem) == wanted), None)


def _refuse_missing(folder: Path, names: Sequence[str], splits: Sequence[str], *, everything: bool) -> None:
    missing = [f"{name}-{split}.csv" for split in splits for name in names if not _file(folder, name, split)]
    if missing:
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        mend = f"; name the subjects that are wanted, or `{FOUND}` for those that are there" if everything else ""
        raise PruneError(f"has no {some}{mend}", where=str(folder))


def _read(source: str | Path, name: str, shots: int, limit: int | None) -> Subject:
    solved = list(_rows(source, name, "dev", shots)) if shots else []
    if len(solved) < shots:
        raise PruneError(f"{name} has {len(solved)} solved questions, {shots} shots were asked", where="shots")
    asked = list(_rows(source, name, "test", limit))
    if not asked:
        raise PruneError(f"{name} has no questions", where=str(source))
    return Subject(name, tuple(solved), tuple(asked))


def _fetched(where: str, split: str) -> Iterator[Row]:
    """A subject's rows from the Hub; where that cannot be reached, the error says what needs no network."""
    try:
        return data.rows(where, split=split)
    except PruneError as error:
        raise PruneError(f"{error.message}; a folder of its CSV files needs no network", where=error.where) from error


def _rows(source: str | Path, name: str, split: str, most: int | None) -> Iterator[Row]:
    folder = _folder(source)
    if folder is None:
        whole, _, revision = str(source).partition("@")
        where = f"{whole}:{name}" + (f"@{revision}" if revision else "")
        rows = _fetched(where, split)
    else:
        path = _file(folder, name, split)
        assert path, (name, split)
        where, rows = str(path), data.rows(path)
    for number, row in enumerate(rows):
        if most is not None and number >= most:
            return
        missing = [column for column in ("question", "answer", *LETTERS) if column not in row]
        if missing or str(row["answer"]) not in ("1", "2", "3", "4"):
            why = f"no column {missing[0]!r}" if missing else f"answer {row['answer']!r}, not 1 to 4"
            raise PruneError(f"question {number + 1} has {why}", where=where)
        yield row
