"""Runs one command and leaves nothing behind: the process between us and Flower's processes.

Flower's SuperLink detaches its helpers into sessions of their own, and Ray starts a dozen more,
so no process group holds them all. This process makes itself the reaper of every descendant
(``PR_SET_CHILD_SUBREAPER``, Linux): whatever loses its parent becomes a child of this one and is
found and ended here. It stops when the command ends, or when its standard input closes, which
the operating system does whichever way the process that started it goes, `kill -9` included.

Uses the standard library only and is started by path, so that it costs a few milliseconds:

    python -I -S guardian.py [--remove FOLDER] [--grace-s SECONDS] -- COMMAND [ARGUMENT ...]

The grace is the command's time to end by itself; without it, what a SuperLink needs to end a run
in order. The folder is removed as the last act. The guardian exits as the command did; a command
ended by a signal counts 128 plus the signal, as in a shell.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 1.0
_CHECK_S = 0.5
_REMOVALS = 4


def main(arguments: list[str]) -> int:
    """Run the command of `arguments` until it ends or standard input closes.

    Args:
        arguments: Command line as in the module's docstring, without the program.

    Returns:
        The exit status for this process.
    """
    split = arguments.index("--")
    options = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    command = arguments[split + 1 :]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # only the closing of standard input ends this
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_become_child)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    _wait(child)
    status = _end_all(child, float(options.get("--grace-s", _GRACE_S)))
    if "--remove" in options:
        _remove(Path(options["--remove"]))
    return status if status >= 0 else 128 - status


def _remove(folder: Path) -> None:
    """Remove a folder, again if something was still going on in it."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_CHECK_S)


def _become_child() -> None:
    for restored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(restored, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should somebody kill the guardian itself


def _wait(child: "subprocess.Popen[bytes]") -> None:
    """Return when the child has ended, standard input is closed or our parent is gone."""
    parent = os.getppid()
    while child.returncode is None and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _CHECK_S)
        if readable and not os.read(sys.stdin.fileno(), 1024):
            return
        _reap(child)


def _end_all(child: "subprocess.Popen[bytes]", grace_s: float) -> int:
    """End the child, then every descendant; return the child's exit status."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=grace_s)
    while _reap(child):  # a process may fork while the list is read, so until none is left
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return child.returncode if child.returncode is not None else -signal.SIGKILL


def _reap(child: "subprocess.Popen[bytes]") -> bool:
    """Collect the children that have ended; return whether any is left.

    Looks before it takes: the command's own status belongs to its `Popen` object.
    """
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if ended is None:
            return True
        if ended.si_pid == child.pid:
            child.poll()
        else:
            os.waitpid(ended.si_pid, 0)


def _descendants() -> list[int]:
    children = _children()
    found: list[int] = []
    level = children.get(os.getpid(), [])
    while level:
        found += level
        level = [grandchild for pid in level for grandchild in children.get(pid, [])]
    return found


def _children() -> dict[int, list[int]]:
    """Every process of this machine by its parent's id."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may itself hold blanks and parentheses.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    return children


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # elsewhere than on Linux
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
