"""One run a folder: a lock that the system releases with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def lock(run_dir: Path, key: str = "run_dir") -> IO[str]:
    """Held until the returned file is closed or the process ends. ValueError naming the holder where there is one.
    `key`: the option that names the folder, for the message.

    A record lock rather than flock: processes forked from the holder (data workers) do not keep it after its death.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            print(f"{run_dir}: this file system has no locks; nothing keeps a second run out", file=sys.stderr)
            return file
        file.seek(0)
        holder = file.read().strip() or "another run"
        raise ValueError(f"{key}={run_dir} is in use by {holder}: wait, or give another {key}") from error
    file.truncate(0)
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file
