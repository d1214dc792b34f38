"""Languages as data: the words that the rules look for, task kinds and formats, and a prompt per operation.

A language is `NAME.yaml` with a folder `NAME` of prompts beside it. Prompts that a language has not are English ones,
which ask to keep the instruction's language.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from prune.document import read
from prune.errors import PruneError, unknown
from prune.options import check_options
from prune.synthesis.words import normal, words

FOLDER = Path(__file__).parent
PROMPTS = tuple(sorted(path.stem for path in (FOLDER / "en").glob("*.txt")))


@dataclass(frozen=True, kw_only=True)
class Language:
    """What the rules and prompts of one language look like.

    letters: a class of characters that tells it, as in `[가-힣]`; `share`: how many of a text's letters must be such.
    stop_words: words that mean nothing alone; replies: words that are an answer alone, but add nothing to another.
    pleads: how a writer says that it cannot.
    short: words below which an answer that pleads is one; leaks: phrases that only prompts use.
    run: words of a template in a row that are no accident; verdicts: how a judge says `same` and `more`.
    difficulties: words for how hard something is, from low to high, those of one step together.
    kinds: task kinds, each with what it asks and the formats that fit it; formats: output formats.
    """

    name: str
    letters: str
    share: float = 0.0
    stop_words: frozenset[str]
    replies: frozenset[str] = frozenset()
    pleads: tuple[str, ...]
    short: int = 80
    leaks: tuple[str, ...]
    run: int = 7
    verdicts: dict[str, tuple[str, ...]]
    difficulties: tuple[tuple[str, ...], ...] = ()
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A language as its file gives it."""

    letters: str
    stop_words: list[str]
    pleads: list[str]
    leaks: list[str]
    verdicts: dict[str, list[str]]
    share: float = 0.0
    short: int = 80
    run: int = 7
    replies: list[str] = field(default_factory=list)
    difficulties: list[list[str]] = field(default_factory=list)
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)


def load(more: Sequence[str | Path] = ()) -> dict[str, Language]:
    """The languages that come with the package, after those of the files in `more`. PruneError where one is wrong."""
    *own, english = _packaged()
    return {language.name: language for language in [*(_language(Path(p), english) for p in more), *own, english]}


@cache
def _packaged() -> tuple[Language, ...]:
    """The languages that come with the package, English last; their files are read once."""
    english = _language(FOLDER / "en.yaml", None)
    return (*(_language(path, english) for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "en"), english)


def names() -> list[str]:
    """The languages that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def tell(text: str, languages: Iterable[Language]) -> Language:
    """The language of a text: of those whose letters it is written in, the one most of whose stop words it uses."""
    letters = sum(map(str.isalpha, text))
    said = words(text)

    def likeness(language: Language) -> tuple[float, int]:
        own = len(re.findall(language.letters, text))
        fits = own > 0 and own >= language.share * letters
        return (language.share if fits else -1.0, sum(word in language.stop_words for word in said))

    return max(reversed(list(languages)), key=likeness)


def chosen(language: str, known: dict[str, Language]) -> Language | None:
    """The language named; None for `auto`. PruneError for one that is not known."""
    if language == "auto":
        return None
    if language not in known:
        raise unknown("language", language, ["auto", *known]).at("language")
    return known[language]


def fill(template: str, **values: object) -> str:
    """A prompt with its places filled, in one pass: what is filled in is never filled again."""
    return re.sub(r"\{(\w+)\}", lambda place: str(values[place[1]]), template).strip()


def tag(template: str) -> str:
    """The name of the tags between which a template asks for the instruction."""
    return next(reversed(re.findall(r"</(\w+)>", template)), "instruction")


def digest(languages: Iterable[Language]) -> str:
    """What tells these languages' data from other data."""
    said = [
        (each.name, {f.name: _plain(getattr(each, f.name)) for f in fields(each) if f.name != "name"})
        for each in languages
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def fingerprint(more: Sequence[str | Path]) -> str:
    """What tells the data of all languages, those in the files of `more` too, from other data."""
    return digest(load(more).values())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _language(path: Path, english: Language | None) -> Language:
    values = read(path).value
    try:
        check_options(_Written, values, of=f"language {path.stem}")
        written = _Written(**values)
        _check(written)
    except PruneError as error:
        raise error.at(str(path)) from None
    return Language(
        name=path.stem,
        letters=written.letters,
        share=written.share,
        stop_words=frozenset(normal(word) for word in written.stop_words),
        replies=frozenset(normal(word) for word in written.replies),
        pleads=tuple(written.pleads),
        short=written.short,
        leaks=tuple(written.leaks),
        run=written.run,
        verdicts={word: tuple(phrases) for word, phrases in written.verdicts.items()},
        difficulties=tuple(tuple(map(normal, step)) for step in written.difficulties),
        kinds=written.kinds or (english.kinds if english else {}),
        formats=written.formats or (english.formats if english else {}),
        prompts=_prompts(path.with_suffix(""), english),
    )


def _check(written: _Written) -> None:
    try:
        re.compile(written.letters)
    except re.error as error:
        raise PruneError(f"letters is not a class of characters: {error}") from None
    if set(written.verdicts) != {"same", "more"}:
        raise PruneError("verdicts must have `same` and `more`, each a list of phrases")
    for name, kind in written.kinds.items():
        if set(kind) != {"asks", "formats"} or not set(kind["formats"]) <= set(written.formats):
            raise PruneError(f"kind {name} must have `asks`, and `formats` that are among the formats")


def _prompts(folder: Path, english: Language | None) -> dict[str, str]:
    if not folder.is_dir():
        return dict(english.prompts) if english else {}
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    for name, text in found.items():
        if english and name not in english.prompts:
            raise unknown("prompt", name, english.prompts).at(str(folder))
        if english and set(_places(text)) - set(_places(english.prompts[name])):
            raise PruneError(
                f"has places that the English prompt has not; choices: {', '.join(_places(english.prompts[name]))}",
                where=str(folder / f"{name}.txt"),
            )
    return {**(english.prompts if english else {}), **found}


def _places(template: str) -> list[str]:
    return sorted(set(re.findall(r"\{(\w+)\}", template)))
