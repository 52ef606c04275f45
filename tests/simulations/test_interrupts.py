"""Ctrl-C ends a run even where Python forgets it."""

import os
import signal
import subprocess
import sys

import pytest

from simulations.interrupts import Interrupts

# A destructor is one of the places where a KeyboardInterrupt is printed and forgotten.
LOST = """
import os, signal, sys
from simulations.interrupts import Interrupts

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

interrupts = Interrupts()
interrupts.listen()
Ends()
print("went on", flush=True)
interrupts.check()
print("not reached")
"""


def test_an_interrupt_that_python_forgets_is_raised_at_the_next_check() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n"
    assert done.stderr.count("KeyboardInterrupt") >= 2
    assert done.returncode == -signal.SIGINT


def test_an_interrupt_is_raised_at_once_as_ever_and_ctrl_c_is_left_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.listen()
    try:
        interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        # Whoever goes on in spite of it is told again.
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    finally:
        interrupts.leave()
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts = Interrupts()
        interrupts.listen()
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
        interrupts.leave()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
