"""A Ctrl-C that is not lost.

Python raises `KeyboardInterrupt` wherever it happens to be. In a destructor, or in what a library
calls back from C, it is printed and forgotten: a run then goes on as if nobody had asked it to end,
which happens on a busy machine. So it is also remembered, and raised again where it cannot be lost.
"""

import signal
import threading
from types import FrameType


class Interrupts:
    """Remembers Ctrl-C from `listen` to `leave`.

    Only in the main thread, and where Ctrl-C raises `KeyboardInterrupt` at all: a process that was
    started with it ignored goes on ignoring it.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._came = False
        self._listening = False

    def listen(self) -> None:
        """Begin to listen."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._listening = True
            signal.signal(signal.SIGINT, self._remember)

    def leave(self) -> None:
        """Leave Ctrl-C as it was; as often as one likes."""
        if self._listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._listening = False

    def check(self) -> None:
        """Raise what was lost.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed while this listened.
        """
        if self._came:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)
