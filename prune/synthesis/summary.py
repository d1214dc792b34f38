"""What a synthesis gave, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune.synthesis.items import RULES


def lines(record: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The head and the rows of a table: what each round tried and kept, and what each rule rejected."""
    rules = [rule for rule in RULES if record["rejected"].get(rule)]
    rows = []
    for each in record["rounds"]:
        counts = [each["round"], each["attempted"], each["kept"], *(each["rejected"].get(rule, 0) for rule in rules)]
        rows.append(tuple(map(str, counts)))
    return ["round", "tried", "kept", *rules], rows


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What else there is to say, a line each."""
    spent, covered = record["spent"], record["coverage"]["filled"]
    said = [f"{record['kept']} kept of {record['attempted']} tried"]
    said[0] += f"; the budget of {record['stopped']} ended it" if record["stopped"] else ""
    tokens = spent["prompt_tokens"] + spent["tokens"]
    money = f", {spent['money']:g} of money" if spent["money"] else ""
    said.append(f"{spent['requests']} requests, {tokens} tokens{money}")
    if None not in covered:
        said.append(f"cells of the grid with items: {covered[0]:.0%} of the seeds', {covered[1]:.0%} now")
    return said
