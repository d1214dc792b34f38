"""Sending to the Hub: once, whole, with the card, private unless asked otherwise, and nothing in a dry run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

import prune
from prune import cli, files
from prune.errors import PruneError
from prune.exports import hub

RECIPE = {"steps": [{"export": {"format": "hub", "repo": "me/small"}}]}


@dataclass
class Hub:
    """Stands where HfApi stands: keeps what it is told."""

    public: bool = False
    refuses: bool = False
    token: str | None = None
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    took: dict[str, bytes] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo": repo, **options}))

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=not self.public, id=repo)

    def create_branch(self, repo: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo": repo, **options}))

    def upload_folder(
        self, *, folder_path: str, allow_patterns: list[str], delete_patterns: list[str], **options: Any
    ) -> Any:
        if self.refuses:
            raise OSError("connection reset\nand more")
        self.calls.append(("upload_folder", options))
        self.took = {name: Path(folder_path, name).read_bytes() for name in allow_patterns}
        self.holds -= set(filter_repo_objects(list(self.holds), allow_patterns=delete_patterns))
        self.holds |= set(self.took)
        return SimpleNamespace(oid="c0ffee", commit_url="https://hub/commit/c0ffee")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """What would be reached, with a token in the environment."""
    found = Hub()

    def made(token: str | None = None) -> Hub:
        found.token = token
        return found

    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return found


def recipe(llama_folder: Path, **options: Any) -> dict[str, Any]:
    export = {"format": "hub", "repo": "me/small", **options}
    return {"model": str(llama_folder), "steps": [{"export": export}]}


def test_the_whole_output_goes_with_its_card_once(llama_folder: Path, tmp_path: Path, api: Hub) -> None:
    out = tmp_path / "out"
    assert prune.apply(recipe(llama_folder), output=out).state == "done"
    assert api.token == "hf_secret"
    assert api.calls[0] == ("create_repo", {"repo": "me/small", "private": True, "exist_ok": True})
    assert [name for name, _ in api.calls] == ["create_repo", "upload_folder"]
    assert set(api.took) == set(files.names(out)) - {files.TIMINGS}
    assert api.took["README.md"].startswith(b"---\n")
    assert files.verify(out) == []
    assert b"hf_secret" not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert prune.apply(recipe(llama_folder), output=out).state == "unchanged"
    assert len(api.calls) == 2


def test_what_was_not_sent_is_sent_by_the_next_run(llama_folder: Path, tmp_path: Path, api: Hub) -> None:
    out = tmp_path / "out"
    api.refuses = True
    with pytest.raises(PruneError, match="the Hub did not take .*: connection reset$"):
        prune.apply(recipe(llama_folder), output=out)
    assert files.verify(out) == []
    api.refuses = False
    assert prune.apply(recipe(llama_folder, revision=None), output=out).state == "unchanged"
    assert "model.safetensors" in api.took
    assert json.loads((out / files.TIMINGS).read_text())["published"][0]["commit"] == "c0ffee"


def test_nothing_is_sent_in_a_dry_run_nor_needed_for_it(
    llama_folder: Path, api: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    found = prune.check(recipe(llama_folder, revision="v1"))
    note = "when it is whole, the output goes to https://huggingface.co/me/small (private, v1)"
    assert found.steps[0]["record"]["notes"] == [note]
    assert api.calls == []


def test_a_run_without_a_token_is_refused_before_it_begins(
    llama_folder: Path, tmp_path: Path, api: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PruneError, match="needs a token in the environment variable HF_TOKEN"):
        prune.apply(recipe(llama_folder), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert api.calls == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo": "small"}, "repo must be owner/name, not 'small'"),
        ({"repo": "me/a b"}, "repo is no Hub id"),
        ({"repo": 3}, "repo must be text, not 3"),
        ({"repo": "me/small", "privat": True}, "unknown option 'privat'; did you mean 'private'?"),
    ],
)
def test_slips_are_known_before(options: dict[str, Any], said: str, llama_folder: Path) -> None:
    with pytest.raises(PruneError) as caught:
        prune.check(recipe(llama_folder, **options))
    assert said in str(caught.value)


def test_a_missing_repo_is_named(llama_folder: Path) -> None:
    with pytest.raises(PruneError, match="repo is missing"):
        prune.check({"model": str(llama_folder), "steps": [{"export": {"format": "hub"}}]})


@pytest.fixture
def output(llama_folder: Path, tmp_path: Path) -> Path:
    prune.save(prune.open(llama_folder), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_repository_that_is_public_is_not_sent_to_by_mistake(output: Path, api: Hub) -> None:
    api.public = True
    with pytest.raises(PruneError, match="me/small is there and is public; `private: false` sends to it"):
        prune.publish(output, repo="me/small")
    assert api.took == {}
    assert prune.publish(output, repo="me/small", private=False, revision="v1")["commit"] == "c0ffee"
    assert ("create_branch", {"repo": "me/small", "branch": "v1", "exist_ok": True}) in api.calls


def test_weights_and_exports_of_an_earlier_push_do_not_stay_beside_the_new_ones(output: Path, api: Hub) -> None:
    """Loaders prefer one whole file to the index of several."""
    kept = {".gitattributes", "LICENSE", "adapters/adapter_model.safetensors", "hfiles/notes.txt"}
    api.holds = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.safetensors", *kept}
    api.holds |= {"onnx/model.onnx", "onnx-int8-static/model.onnx", "gguf-f16/model.gguf", "hf-deci/config.json"}
    prune.publish(output, repo="me/small")
    assert api.holds == kept | set(api.took)
    assert "model.safetensors" in api.took


def test_an_output_that_was_changed_is_not_sent(output: Path, api: Hub) -> None:
    (output / "config.json").write_text("{}")
    with pytest.raises(PruneError, match=r"was changed since it was made \(config.json: changed\), so it is not sent"):
        prune.publish(output, repo="me/small")
    assert api.calls == []


def test_the_command_sends_or_only_says(output: Path, api: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["push", str(output), "me/small", "--dry-run", "-q"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "nothing was sent" in shown
    assert api.calls == []
    assert cli.run(["push", str(output), "me/small", "-q"]) == 0
    assert "sent: https://hub/commit/c0ffee" in capsys.readouterr().out
    assert cli.run(["push", str(output), "small", "-q"]) == 2


def test_the_format_is_for_recipes(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="`prune push OUT REPO` sends one"):
        prune.export(prune.open(llama_folder), tmp_path / "out", format="hub", repo="me/small")


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A Hub on this machine that refuses everything: it notes what was asked, and with which token."""
    asked: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            self.send_response(403)
            self.end_headers()

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, *_: Any) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", asked
    found.shutdown()
    found.server_close()


def test_the_real_client_asks_with_the_token_and_a_refusal_is_one_line(
    output: Path, server: tuple[str, list[tuple[str, str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.is_offline_mode", lambda: False, raising=False)
    address, asked = server
    with pytest.raises(PruneError, match="the Hub did not take") as caught:
        hub.publish(output, repo="me/small", api=HfApi(endpoint=address, token="hf_secret"))
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)
    assert asked[0] == ("POST", "/api/repos/create", "Bearer hf_secret")
