"""A folder appears whole or not at all: every failing call, and real kills at random moments."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prune import files
from prune.errors import PruneError
from tests.fakes import command

CALLS = ("open", "close", "fsync", "rename", "mkdir", "scandir", "stat", "unlink", "rmdir")


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (folder / name).write_text(text)
    table = files.hashes(folder)
    files.write_json(folder / files.MANIFEST, {"format": files.MARK, "files": table})


def ours(folder: Path, text: str) -> Path:
    folder.mkdir()
    fill(folder, text)
    return folder


def content(folder: Path) -> set[str]:
    """The texts in a folder, which must be whole."""
    assert files.names(folder) == ["a", "b", files.MANIFEST, "sub/c"]
    assert files.verify(folder) == []
    return {(folder / name).read_text() for name in ("a", "b", "sub/c")}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_folder_takes_its_place(tmp_path):
    with files.staged(tmp_path / "deep" / "out") as staging:
        assert staging.parent == tmp_path / "deep"
        assert listing(tmp_path / "deep") == [staging.name]
        fill(staging, "new")
    assert content(tmp_path / "deep" / "out") == {"new"}
    assert listing(tmp_path / "deep") == ["out"]


def test_a_failure_leaves_everything_as_it_was(tmp_path):
    ours(tmp_path / "out", "old")

    def interrupted() -> None:
        with files.staged(tmp_path / "out", overwrite=True) as staging:
            fill(staging, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(tmp_path / "out") == {"old"}
    assert listing(tmp_path) == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("x")
    (tmp_path / "file").write_text("x")
    ours(tmp_path / "mine", "old")
    for name, overwrite, expected in (
        ("out", True, "never replaced"), ("file", True, "is a file"), ("mine", False, "--overwrite replaces it"),
    ):  # fmt: skip
        with pytest.raises(PruneError, match=expected), files.staged(tmp_path / name, overwrite=overwrite):
            raise AssertionError("reached")
    assert listing(tmp_path) == ["file", "mine", "out"]


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path):

    def overtaken() -> None:
        with files.staged(tmp_path / "out", overwrite=True) as staging:
            fill(staging, "new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis").write_text("x")

    with pytest.raises(PruneError, match="never replaced"):
        overtaken()
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == ["thesis"]


def test_an_output_that_is_a_link_stays_one(tmp_path):
    ours(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to("real")
    with files.staged(tmp_path / "out", overwrite=True) as staging:
        fill(staging, "new")
    assert (tmp_path / "out").is_symlink()
    assert content(tmp_path / "real") == {"new"}


class Failing:
    """Makes the n-th file-system call fail, counted over all of CALLS and the exchange."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, exchange: Callable[[Path, Path], bool]):
        self.left = nth
        for name in CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        monkeypatch.setattr(files, "_exchange", self.counted(exchange))

    def counted(self, call: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                raise OSError(5, "made to fail")
            return call(*args, **kwargs)

        return wrapped


def no_exchange(one: Path, other: Path) -> bool:  # noqa: ARG001  # a system without the call
    return False


@pytest.mark.parametrize("exchange", [files._exchange, no_exchange], ids=["exchange", "two renames"])
@pytest.mark.parametrize("existing", [True, False], ids=["over an old one", "new"])
def test_whichever_call_fails_the_folder_is_whole(tmp_path, exchange, existing):
    passed, nth = False, 0
    while not passed:
        nth += 1
        place = tmp_path / str(nth)
        place.mkdir()
        if existing:
            ours(place / "out", "old")
        with pytest.MonkeyPatch.context() as patch:
            failing = None
            try:
                with files.staged(place / "out", overwrite=True) as staging:
                    fill(staging, "new")
                    failing = Failing(patch, nth, exchange)
                passed = failing.left > 0
            except OSError as error:
                assert error.strerror == "made to fail"  # noqa: PT017
        files.clean_stale(place, "out")
        assert listing(place) in (["out"], [] if not existing else ["out"])
        if (place / "out").exists():
            assert content(place / "out") in ({"new"}, {"old"})
        assert not passed or content(place / "out") == {"new"}
    assert nth > 10, "the commit makes more calls than that"


def test_an_old_folder_caught_between_two_renames_is_put_back(tmp_path):
    ours(tmp_path / ".out.old-0123abcd", "old")
    ours(tmp_path / ".out.tmp-0123abcd", "new")
    ours(tmp_path / ".other.tmp-0123abcd", "of another run")
    assert files.has_stale(tmp_path, "out")
    files.clean_stale(tmp_path, "out")
    assert content(tmp_path / "out") == {"old"}
    assert listing(tmp_path) == [".other.tmp-0123abcd", "out"]
    assert not files.has_stale(tmp_path, "out")


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a Linux call")
def test_the_exchange_is_one_call_and_says_where_it_is_missing(tmp_path, monkeypatch):
    one, other = ours(tmp_path / "one", "1"), ours(tmp_path / "other", "2")
    assert files._exchange(one, other)
    assert (content(one), content(other)) == ({"2"}, {"1"})
    with pytest.raises(FileNotFoundError):
        files._exchange(one, tmp_path / "none")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert not files._exchange(one, other)


def test_a_rewrite_killed_at_random_moments_leaves_old_or_new(tmp_path):
    ours(tmp_path / "out", "0")
    rng = random.Random(0)
    for _ in range(15):
        with subprocess.Popen(**command("tests.test_files", str(tmp_path / "out"))) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
        assert len(content(tmp_path / "out")) == 1
    files.clean_stale(tmp_path, "out")
    assert listing(tmp_path) == ["out"]


def test_verify_names_every_difference(tmp_path):
    folder = ours(tmp_path / "out", "x")
    (folder / "a").write_text("y")
    (folder / "b").unlink()
    (folder / "b").symlink_to("a")
    (folder / "sub" / "c").unlink()
    (folder / "d").write_text("z")
    (folder / files.TIMINGS).write_text("{}")
    assert files.verify(folder) == ["a: changed", "b: a link, not a file", "d: not listed", "sub/c: missing"]


def test_verify_reads_only_what_is_in_the_folder(tmp_path):
    folder = ours(tmp_path / "out", "x")
    files.write_json(folder / files.MANIFEST, {"format": files.MARK, "files": {"../secret": "0"}})
    assert "../secret: missing" in files.verify(folder)


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{", '{"format": "x"}', '{"format": "prune-output", "files": 3}', "\xff"]
)
def test_a_folder_without_our_manifest_is_not_ours(tmp_path, text):
    if text is not None:
        (tmp_path / files.MANIFEST).write_bytes(text.encode("latin-1"))
    assert not files.is_ours(tmp_path)
    with pytest.raises(PruneError, match=r"prune\.json"):
        files.verify(tmp_path)


def test_hashes_leave_out_what_varies(tmp_path):
    folder = ours(tmp_path / "out", "x")
    (folder / files.TIMINGS).write_text("{}")
    assert list(files.hashes(folder)) == ["a", "b", "sub/c"]
    assert files.hashes(folder)["a"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_json_is_the_same_bytes_whatever_the_order(tmp_path):
    files.write_json(tmp_path / "a", {"b": [1, "é"], "a": None})
    files.write_json(tmp_path / "b", {"a": None, "b": [1, "é"]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text("utf-8").endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "c", {"a": float("nan")})


def test_a_second_holder_is_refused_in_one_line(tmp_path):
    with (
        files.lock(tmp_path / "lock"),
        pytest.raises(PruneError, match="another run is writing here"),
        files.lock(tmp_path / "lock"),
    ):
        raise AssertionError("reached")
    with files.lock(tmp_path / "lock"):
        pass


def test_a_lock_dies_with_its_holder(tmp_path):
    with subprocess.Popen(**command("tests.test_files", "--hold", str(tmp_path / "lock"))) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(PruneError), files.lock(tmp_path / "lock"):
            raise AssertionError("reached")
        process.kill()
        process.wait()
        with files.lock(tmp_path / "lock"):
            pass


def test_link_or_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    assert files.link_or_copy(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "a").samefile(tmp_path / "deep" / "b")
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: os.link("/dev/null", "/none/there"))
    assert not files.link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x"


def test_discard_removes_a_folder(tmp_path):
    ours(tmp_path / "out", "x")
    files.discard(tmp_path / "out")
    files.discard(tmp_path / "out")
    assert listing(tmp_path) == []


def main() -> None:
    """Another process: holds a lock, or writes a folder over and over, until it is killed."""
    if sys.argv[1] == "--hold":
        with files.lock(sys.argv[2]):
            print("held", flush=True)
            time.sleep(60)
    print("imported", flush=True)
    for number in range(1_000_000):
        with files.staged(sys.argv[1], overwrite=True) as staging:
            fill(staging, str(number))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in ("/proc/none/out", tmp_path / "file" / "out"):
        with pytest.raises(PruneError, match="cannot be written"), files.staged(path):
            pass
