"""A server that fails, stalls and answers garbage loses no item; what it says of pace and keys is obeyed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence, Set
from email.utils import formatdate
from pathlib import Path

import pytest

import prune
from prune.errors import PruneError
from prune.synthesis.answers import opened
from prune.synthesis.writers import endpoint as module
from prune.synthesis.writers import make, patience
from prune.synthesis.writers.endpoint import endpoint
from prune.synthesis.writers.pace import Pace
from prune.synthesis.writers.writer import Reply, Request, Writer
from tests.fakes import command
from tests.synthesis.script import text
from tests.synthesis.server import FAULTS, reply, running, told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.1)
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")


def requests(count: int) -> list[Request]:
    return [Request(f"Question {number}", 20, 0.7, number) for number in range(count)]


def seeds(folder: Path, count: int) -> Path:
    path = folder / "seeds.json"
    path.write_text(json.dumps([{"instruction": text("en", number), "skill": "s"} for number in range(count)]))
    return path


def test_one_request_in_five_goes_wrong_in_every_way_and_no_item_is_lost(tmp_path: Path) -> None:
    rows = {}
    for bad in (5, 0):
        with running(bad=bad) as url:
            writer = {"endpoint": url, "model": "m", "at_once": 8, "timeout": 0.4, "retries": 12}
            found = prune.synthesize(tmp_path / f"out{bad}", seeds=seeds(tmp_path, 24), writer=writer, rounds=1)
            stats = told(url)
        assert found["attempted"] == found["kept"] == 48
        assert stats["answered_twice"] == 0
        assert stats["most_at_once"] <= 8 + stats["faults"].get("stall", 0)  # those it was left to sleep on
        rows[bad] = (tmp_path / f"out{bad}/data.jsonl").read_text()
        if bad:
            assert set(stats["faults"]) == set(FAULTS)
            assert stats["count"] > stats["different"] == 24 + 24 * 3
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"a-secret" in path.read_bytes()]
    assert rows[5] == rows[0], "the faults leave no trace in the data"


def resume() -> None:
    """A run in a process of its own, to be killed."""
    prune.synthesize("out", **json.loads(Path("config.json").read_text()))


def test_a_killed_run_asks_nothing_again_that_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with running(latency=0.02) as url:
        writer = {"endpoint": url, "model": "m", "at_once": 4}
        config = {"seeds": str(seeds(tmp_path, 16)), "writer": writer, "rounds": 2}
        Path("config.json").write_text(json.dumps(config))
        process = subprocess.Popen(**command("tests.synthesis.test_endpoint", call="resume"))
        while told(url)["answered"] < 60:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not Path("out").exists()
        found = prune.synthesize("out", **config)
        stats = told(url)
    assert found["kept"] == 48 and prune.verify("out") == []
    assert stats["different"] == 16 + 32 * 3
    assert stats["answered_twice"] <= 4, "at most those that were on their way as it was killed"
    assert not Path("out.work").exists()


def test_replies_come_in_their_places_and_only_the_wanted_ones() -> None:
    with running() as url:
        writer = endpoint(url, "m", at_once=3)
        found = dict(writer.answer(requests(9), frozenset({1, 4, 8})))
        assert {place: one.text for place, one in found.items()} == {n: reply(f"Question {n}") for n in (1, 4, 8)}
        assert told(url)["count"] == 3
        assert told(url)["keys"] == ["bearer a-secret"]
        assert found[4].prompt_tokens == len("Question 4") // 4


def test_the_token_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOTHER", "another-secret")
    with running() as url:
        list(endpoint(url, "m", token="ANOTHER").answer(requests(1), frozenset({0})))
        assert told(url)["keys"] == ["bearer another-secret"]


def test_what_asking_again_would_not_mend_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with running() as url:
        with pytest.raises(PruneError, match=r"who are you$"):
            list(endpoint(url, "m", at_once=1).answer(requests(5), frozenset(range(5))))
        assert told(url)["count"] == 0


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NO_KEY", "wrong")
    monkeypatch.delenv("OPENAI_API_KEY")
    with running() as url, pytest.raises(PruneError, match="who are you.*; OPENAI_API_KEY is not set"):
        list(endpoint(url, "m").answer(requests(1), frozenset({0})))


def test_a_completion_without_words_is_an_empty_reply_where_it_says_why() -> None:
    asked = [Request(f"wordless {why}", 20, 0.7, 0) for why in ("thought", "withheld")]
    with running() as url:
        found = dict(endpoint(url, "m", retries=0).answer(asked, frozenset({0, 1})))
        assert told(url)["count"] == 2
    assert [(found[place].text, found[place].truncated) for place in (0, 1)] == [("", True), ("", False)]


def test_an_endpoint_that_never_answers_says_so_and_keeps_the_rest(tmp_path: Path) -> None:
    with running() as url:
        pass  # and gone
    writer = {"endpoint": url, "model": "m", "retries": 1}
    with pytest.raises(PruneError, match=r"did not answer in 2 tries .* the same command goes on"):
        prune.synthesize(tmp_path / "out", seeds=seeds(tmp_path, 3), writer=writer, rounds=0)
    assert not (tmp_path / "out").exists()


def test_a_refused_prompt_is_rejected_and_the_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps([{"instruction": t} for t in ("Please refuse this one", text("en", 1), text("en", 2))]))
    with running() as url:
        writer = {"endpoint": url, "model": "m"}
        found = prune.synthesize(tmp_path / "out", seeds=path, writer=writer, rounds=0)
    assert (found["kept"], found["rejected"]) == (2, {"meaningless": 1})


def test_an_endpoint_that_refuses_everything_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps([{"instruction": f"{text('en', n)} refuse this"} for n in range(20)]))
    with running() as url, pytest.raises(PruneError, match="refuses every request: .*not allowed"):
        prune.synthesize(tmp_path / "out", seeds=path, writer={"endpoint": url, "model": "m"}, rounds=0)


def test_what_was_refused_by_mistake_is_asked_again_once_that_is_mended(tmp_path: Path) -> None:
    known, log = requests(20), tmp_path / "answers.jsonl"

    def ask(wrong: bool, asked: list[Request]) -> dict[int, Reply]:
        def answer(requests: Sequence[Request], wanted: Set[int]) -> Iterator[tuple[int, Reply]]:
            yield from endpoint(url, "refuse this" if wrong else "m").answer(requests, wanted)

        index = sqlite3.connect(":memory:", isolation_level=None)
        with opened(log, index, Writer("w", "w", answer)) as answers:
            return dict(answers.ask(asked))

    with running() as url:
        with pytest.raises(PruneError, match="refuses every request"):
            ask(True, known)
        assert log.read_bytes() == b""
        assert all(reply.text for reply in ask(False, known).values())
        refused = Request("refuse this", 20, 0.7, 0)
        ask(False, [refused, *requests(30)])
        before = told(url)["count"]
        assert ask(False, [refused, *requests(30)])[0].text == ""
        assert told(url)["count"] == before, "what is refused by a sound endpoint is not asked again"


@pytest.mark.parametrize("given", [{"requests_per_minute": 30.0}, {"tokens_per_minute": 9.0}])
def test_the_pace_that_a_config_gives_is_kept(given: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    paces: list[dict[str, float | None]] = []
    monkeypatch.setattr(module, "Pace", lambda **how: paces.append(how))
    make.writer({"endpoint": "http://localhost/v1", "model": "m", **given})
    own = {f"{name}_per_minute": value for name, value in paces[0].items()}
    assert {name: value for name, value in own.items() if value} == given


def test_waits_double_and_differ_and_end_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_WAIT", 0.08)
    waits = [patience.backoff(attempt, 500) for attempt in range(6)]
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.08, 0.08])
    assert len({patience.backoff(0, seed) for seed in range(100)}) == 100


def test_the_body_of_a_request_can_be_changed() -> None:
    asked = module._payload(requests(1)[0], {"model": "m", "max_tokens": None, "max_completion_tokens": 7})
    assert asked["max_completion_tokens"] == 7 and "max_tokens" not in asked and asked["seed"] == 0


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert patience.retry_after({"retry-after": "2.5"}) == 2.5
    assert patience.retry_after({"retry-after": "-1"}) == 0
    assert 8 < (patience.retry_after({"retry-after": formatdate(time.time() + 10, usegmt=True)}) or 0) <= 10
    assert patience.retry_after({"retry-after": "1e300"}) == patience.LONGEST_HOLD
    for nonsense in ("soon", "nan", "inf", "-inf"):
        assert patience.retry_after({"retry-after": nonsense}) is None
    assert patience.retry_after({}) is None


class Clock:
    """Time that passes when somebody waits for an event that never comes."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("prune.synthesis.writers.pace.time", made)
    return made


def test_no_more_requests_go_out_in_a_minute_than_are_allowed(clock: Clock) -> None:
    pace = Pace(requests=30)
    sent = []
    for _ in range(61):
        pace.wait(clock)  # type: ignore[arg-type]
        sent.append(clock.now)
    assert all(sum(start <= other < start + 60 for other in sent) <= 30 for start in sent)
    assert sent[-1] - sent[0] == pytest.approx(120)


def test_nothing_goes_out_while_the_endpoint_asks_to_wait(clock: Clock) -> None:
    pace = Pace()
    pace.hold(7.0)
    pace.wait(clock)  # type: ignore[arg-type]
    assert clock.now == pytest.approx(107.0)


def test_nobody_is_kept_waiting_by_a_run_that_has_ended() -> None:
    pace, stop = Pace(requests=1), threading.Event()
    pace.hold(3600.0)
    waiting = [threading.Thread(target=pace.wait, args=(stop,), daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    stop.set()
    for thread in waiting:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in waiting)
    pace.wait(stop)


def test_tokens_of_a_minute_are_waited_for(clock: Clock) -> None:
    pace = Pace(tokens=100)
    sent = []
    for _ in range(9):
        pace.wait(clock)  # type: ignore[arg-type]
        sent.append(clock.now)
        pace.spent(50)
        clock.now += 1
    for start in sent:
        assert sum(start <= other < start + 60 for other in sent) <= 3  # the third may begin while 100 are not passed
    assert sent[-1] > 160
