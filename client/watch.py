"""What the operator of a site sees while it takes part: a few lines out of two logs."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from fundusgen.logs import harmless

_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CLIENT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
# What Flower 1.41 prints, and what it means to an operator.
_TAKEN, _LOST, _BACK = "SuperNode ID:", "Connection attempt failed", "Connection successful"
# As `client.supernode` has its programs say it.
_REFUSED = re.compile(r"refused to start [\w-]{1,40}, which the server asked for")
# At the start of the line: the root logger repeats it with a time before.
_NOT_ANSWERED = re.compile(r"ERROR\s*:\s*ClientApp raised an exception")
_ENDS = {
    "Failed to activate SuperNode": (
        "The server does not take this site: its key is not registered there, or an earlier "
        "session of it still lives",
        "Ask the study lead whether keys/node.pub is registered; after a crash, try again in a "
        "minute",
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "The server's certificate is not one that --root-certificates vouches for, or names "
        "another host",
        "Give the ca.crt of this study's server, and the server's name as in its certificate",
    ),
    "SSL/TLS handshake": (
        "The server does not speak TLS at this address",
        "Ask the study lead for the server's address and port",
    ),
}
_OTHER_END = ("The connection to the server has ended", "Try again in a minute")


class Watch:
    """Reads what is new in the log of the client app and in that of Flower's SuperNode.

    The client's own lines are shown as they are: they are meant for the operator, and never leave
    the site. Of the SuperNode's, what an operator can do something about.

    Args:
        superlink: The server, as the operator named it.
        client_log: `client.log` of the site.
        supernode_log: What the SuperNode prints.
    """

    def __init__(self, superlink: str, client_log: Path, supernode_log: Path) -> None:
        """Begin at the end of both files."""
        self.superlink = superlink
        self._client, self._supernode = _Tail(client_log), _Tail(supernode_log)
        self._connection_lost = self._joined = False
        self._end = _OTHER_END

    def news(self) -> list[str]:
        """Lines to show, in order."""
        shown = [line for text in self._supernode.lines() for line in self._of_supernode(text)]
        # A line without a time goes on with the one before: a traceback, which the file keeps.
        return shown + [line for line in self._client.lines() if _CLIENT_LINE.match(line)]

    def why_ended(self) -> tuple[str, str]:
        """What ended the SuperNode, as far as its log tells, and what to do."""
        return self._end

    def _of_supernode(self, text: str) -> Iterator[str]:
        if _TAKEN in text:
            self._joined = True
            yield _now(f"joined {self.superlink}")
        elif _LOST in text and not self._connection_lost:
            self._connection_lost = True
            yield _now(f"no connection to {self.superlink}; trying again and again")
        elif _BACK in text:
            self._connection_lost = False
            yield _now(f"connected to {self.superlink}")
        elif _NOT_ANSWERED.match(text):
            yield _now("a message was not answered; flower/supernode.log says why")
        elif _REFUSED.fullmatch(text):
            yield _now(text)
        # Ours, before it speaks with the server; later lines may hold what that has sent.
        elif text.startswith("error: ") and not self._joined:
            self._end = text.removeprefix("error: ").rstrip("."), "Nothing was started"
        else:
            self._end = next((_ENDS[sign] for sign in _ENDS if sign in text), self._end)


class _Tail:
    """Whole lines that are added to a file, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._position:  # emptied, or put aside by logrotate
                    self._position = 0
                file.seek(self._position)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._position += len(whole)
        text = _ANSI_COLOUR.sub("", whole.decode(errors="replace"))
        # Not `splitlines`, which ends a line at characters that a name may hold.
        return [harmless(line.rstrip()) for line in text.split("\n")[:-1]]


def _now(text: str) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}"
