from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from data.progress import progress_bar

LOOP = "from data.progress import progress_bar\nfor _ in progress_bar(range(500), desc='reading'): pass"


def test_outside_a_terminal_a_loop_prints_one_plain_line(capfd):
    for _ in progress_bar(range(500), desc="reading", unit="row"):
        pass
    printed = capfd.readouterr().err
    assert printed.startswith("reading: 500/500 row, ") and printed.count("\n") == 1 and "\r" not in printed


def test_outside_a_terminal_values_that_change_print_no_line_of_their_own(capfd):
    with progress_bar(total=3, desc="train", unit="step") as bar:
        for loss in (3.0, 2.0, 1.0):
            bar.set_postfix({"loss": loss})
            bar.update()
    printed = capfd.readouterr().err
    assert printed.startswith("train: 3/3 step, ") and printed.endswith("loss=1\n") and printed.count("\n") == 1


def test_a_hidden_progress_prints_nothing(capfd):
    for _ in progress_bar(range(3), disable=True):
        pass
    assert capfd.readouterr().err == ""


def test_a_terminal_shows_a_bar():
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", LOOP], stderr=child, check=True)
    assert b"\rreading: 100%|" in os.read(parent, 1 << 16)


def test_outside_a_terminal_the_libraries_draw_no_bars():
    code = (
        "from data.progress import hide_library_bars\nhide_library_bars()\n"
        "from transformers.utils import logging\nfor _ in logging.tqdm(range(9)): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "it/s" not in done.stderr
