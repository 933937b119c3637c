"""Push a folder to the Hugging Face Hub as one commit, retried when the connection fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

# The error class of httpx or httpx2, whichever huggingface_hub uses; RuntimeError is raised by hf_xet.
FAILURES: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError, RuntimeError)
ATTEMPTS = 5
# Stale files of these kinds would be read together with the new ones.
WEIGHTS = (".safetensors", ".safetensors.index.json", "adapter_config.json")


def push(folder: Path, repo: str, private: bool, pause: float = 2.0) -> str:
    """The URL of the commit. A missing repository is created. The pause between attempts starts at `pause` seconds and
    doubles. ValueError if the push fails; folder and repository are then unchanged."""
    for attempt in range(ATTEMPTS):
        try:
            return commit(HfApi(), folder, repo, private)
        except FAILURES as error:
            failure = error
            if refused(error):
                break
            if attempt < ATTEMPTS - 1:
                print(f"push={repo}: {_line(error)}; trying again", file=sys.stderr)
                time.sleep(pause * 2**attempt)
    raise ValueError(
        f"push={repo} failed ({_line(failure)}): {remedy(failure)} and run the same command again; the export is in "
        f"{folder}"
    ) from failure


def commit(api: HfApi, folder: Path, repo: str, private: bool) -> str:
    """Push once. Files that the repository already has are not sent again, and no commit is made without changes."""
    # None: a new repository gets the account's default visibility, an existing one keeps its own.
    repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    info = api.model_info(repo)
    if private and not info.private:
        raise ValueError(f"push={repo}: is public: make it private in its settings, or remove private=true")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = [file.rfilename for file in info.siblings or () if file.rfilename.endswith(WEIGHTS)]
    # Not upload_folder, which may split a large folder into several commits.
    done = api.create_commit(
        repo,
        [
            *(CommitOperationDelete(name) for name in stale if name not in files),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
        ],
        commit_message="Upload an uptrained checkpoint",
    )
    return done.commit_url


def refused(error: Exception) -> bool:
    """True if the server rejects the request in a way that a retry does not change."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in (408, 409, 429)


def remedy(error: Exception) -> str:
    if status_of(error) in (401, 403, 404):
        return "log in with `hf auth login` to an account with write access"
    return "correct what the server reports" if refused(error) else "check the network"


def status_of(error: Exception) -> int | None:
    """The HTTP status; None if the server has not responded."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
