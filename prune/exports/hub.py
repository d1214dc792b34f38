"""`hub`: the whole finished output, its card included, to a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prune import files
from prune.errors import PruneError
from prune.exports import formats
from prune.exports.job import Job
from prune.model.model import Model

TOKEN = "HF_TOKEN"
PUBLISHES = True  # it makes no files of its own: it is a note to the run, which sends its output when that is whole


def export(job: Job, *, repo: str, private: bool = True, revision: str | None = None) -> dict[str, Any]:  # noqa: ARG001
    """Send the finished output to the Hugging Face Hub, with the token in the environment variable HF_TOKEN.

    Everything the run writes goes: checkpoint, card, report, other exports. It is sent last, when the output is whole;
    a run that is started again sends what was not. `prune push` sends an output that is there. Weights and exports of
    an earlier push that this output lacks are deleted there.

    repo: `owner/name`; made where there is none.
    private: nobody else can see the repository. One that is public already is refused unless this is false.
    revision: the branch to send to; the main one when left out.
    """
    kind = "private" if private else "public"
    said = f"when it is whole, the output goes to https://huggingface.co/{repo} ({kind}, {revision or 'main'})"
    return {"format": "hub", "publish": {"repo": repo, "private": private, "revision": revision}, "notes": [said]}


def check(model: Model | None, *, repo: str, **_: Any) -> str | None:  # noqa: ARG001
    """Why nothing can be sent there, or None; asks nobody."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return f"repo is no Hub id: {str(error).splitlines()[0]}"
    return None if "/" in repo else f"repo must be owner/name, not {repo!r}"


def token() -> str:
    """The token to send with. PruneError where the environment has none."""
    found = os.environ.get(TOKEN)
    if not found:
        raise PruneError(
            f"sending to the Hub needs a token in the environment variable {TOKEN}; it is read nowhere else"
        )
    return found


def sent(folder: Path) -> dict[str, int]:
    """What of an output would be sent: names and bytes. PruneError when it is not as it was written."""
    problems = files.verify(folder)
    if problems:
        raise PruneError(f"was changed since it was made ({problems[0]}), so it is not sent", where=str(folder))
    return {name: (folder / name).stat().st_size for name in files.names(folder) if name != files.TIMINGS}


def publish(
    folder: Path, *, repo: str, private: bool = True, revision: str | None = None, api: Any = None
) -> dict[str, str]:
    """Send an output of ours to the Hub; gives the repository and the commit.

    `api` is a `huggingface_hub.HfApi`, made with the environment's token when left out. Raises PruneError without a
    token, for an output that was changed, a repository that is public though it should be private, and for what the
    Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    names = list(sent(folder))
    api = api or HfApi(token=token())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise PruneError(f"{repo} is there and is public; `private: false` sends to it", where="repo")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            revision=revision,
            allow_patterns=names,
            delete_patterns=_ours(),
            commit_message="Pruned with prune",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PruneError(f"the Hub did not take {folder}: {reason}", where="repo") from error
    return {"repo": repo, "commit": str(commit.oid), "url": str(commit.commit_url)}


def _ours() -> list[str]:
    """Patterns of what a push takes away where the output lacks it: old weights beside a new index would be read."""
    folders = [name for name in formats() if name != "hub"]
    return ["model*.safetensors*", *(pattern for name in folders for pattern in (f"{name}/*", f"{name}-*/*"))]
