"""Worker processes never outlive the process that started them."""

import subprocess
import sys

PROGRAM = """
from data.workers import ignore_signals
import multiprocessing, time
def work(started):
    ignore_signals(0)
    started.set()
    time.sleep(60)
context = multiprocessing.get_context("fork")
started = context.Event()
context.Process(target=work, args=(started,), daemon=True).start()
started.wait()
"""


def test_workers_that_ignore_signals_end_with_their_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], timeout=30)
    assert done.returncode == 0
