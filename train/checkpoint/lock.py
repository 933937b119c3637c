"""A lock on a run's folder, which the operating system releases when its holder ends in any way."""

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
    """Lock `run_dir` until the returned file is closed or the process ends.

    Raise ValueError, naming the holder and the option `key`, if another process holds the lock. It is a record lock,
    not flock, so that data workers forked from the holder do not keep it after the holder's death.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            print(
                f"{run_dir}: this file system does not support locks; do not start a second run in it", file=sys.stderr
            )
            return file
        file.seek(0)
        holder = file.read().strip() or "another run"
        raise ValueError(f"{key}={run_dir} is in use by {holder}: wait, or give another {key}") from error
    file.truncate(0)
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file
