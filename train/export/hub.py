"""A folder as one commit on the Hugging Face Hub: all of it or nothing, however often the connection is lost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

# httpx's or httpx2's error class, whichever huggingface_hub is built on; RuntimeError: hf_xet's.
FAILURES: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError, RuntimeError)
ATTEMPTS = 5
WEIGHTS = (".safetensors", ".safetensors.index.json", "adapter_config.json")  # stale ones would be read with the new


def push(folder: Path, repo: str, private: bool, pause: float = 2.0) -> str:
    """The address of the commit. The repository is created where there is none; `pause` seconds double by attempt.

    ValueError where it cannot be done: the folder stays as it is, and the repository as it was.
    """
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
        f"push={repo} failed ({_line(failure)}): {remedy(failure)} and give the same command again; the export is in "
        f"{folder}"
    ) from failure


def commit(api: HfApi, folder: Path, repo: str, private: bool) -> str:
    """Push once. Files that the repository already has are not sent again, and no commit is made without changes."""
    # None: a new repository as the account's settings say, an old one as it is.
    repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    info = api.model_info(repo)
    if private and not info.private:
        raise ValueError(f"push={repo}: is public: make it private in its settings, or leave private=true out")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = [one.rfilename for one in info.siblings or () if one.rfilename.endswith(WEIGHTS)]
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
    """True if the server has rejected the request for good, so that trying again is useless."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in (408, 409, 429)


def remedy(error: Exception) -> str:
    if status_of(error) in (401, 403, 404):
        return "log in with `hf auth login` as somebody who may write there"
    return "correct what the server names" if refused(error) else "check the network"


def status_of(error: Exception) -> int | None:
    """The HTTP status; None if the server has not responded."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
