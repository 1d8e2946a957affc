"""Is a process of this machine still there? Asked of itself, past Redis.

Redis cannot tell a process that has died from one whose connections were cut: neither is heard, and neither has an ear on its
channel. The kernel can. Every process listens on a datagram socket whose abstract name is its id. Asking a name that nobody has
is refused at once, so a death is certain the moment it is asked for; an answer proves that the event loop runs; no answer
leaves open whether the process hangs, is stopped, or has too much to do.

Abstract names belong to one network namespace, so only processes in ours can be asked. An id says so itself: it ends with its
place, made of the machine's boot and the namespace (`w-0123456789abcdef-1a2b3c4d`), and of a peer with another place, or with
none, nothing can be told here. Linux only; elsewhere no id has a place.

    https://man7.org/linux/man-pages/man7/unix.7.html, "Abstract sockets"
"""

import errno
import hashlib
import math
import os
import secrets
import socket
from enum import Enum
from pathlib import Path
from typing import Final

import trio

ANSWER_SECONDS: Final = 2.0
"""How long an answer counts. Questions come every second at least while there is reason to ask."""

_QUESTION: Final = b"?"
_ANSWER: Final = b"!"


class Sign(Enum):
    """What a neighbour gives when it is asked."""

    GONE = "gone"  # its process has ended
    ANSWERS = "answers"  # its event loop runs
    SILENT = "silent"  # its process exists; it has not answered (yet)
    UNKNOWN = "unknown"  # it lives elsewhere, and cannot be asked


class Neighbours:
    """This process's name, and the way to ask others. `id`: 64 random bits and the place; another start is another process."""

    def __init__(self, kind: str) -> None:
        """`kind`: the letter that the id begins with, `f` for a frontend, `w` for a worker."""
        name, place = f"{kind}-{secrets.token_hex(8)}", _place()
        self._socket = _bound(f"{name}-{place}") if place else None
        self._place = place if self._socket is not None else ""
        self.id = f"{name}-{place}" if self._place else name
        self._answered: dict[str, float] = {}

    async def run(self) -> None:
        """Answer, and take in answers, until cancelled."""
        if self._socket is None:
            await trio.sleep_forever()
        sock = trio.socket.from_stdlib_socket(self._socket)
        with sock:
            while True:
                said, sender = await sock.recvfrom(8)
                name = _name(sender)  # anybody on this machine may write to us, also from a socket without a name
                if said == _ANSWER and name in self._answered:
                    self._answered[name] = trio.current_time()
                elif said == _QUESTION and name:
                    self._say(_ANSWER, _address(name))

    def ask(self, peer: str, now: float) -> Sign:
        """Ask, and say what is known by now; to be called again while it matters. `now`: `trio.current_time()`."""
        if not self._place or peer.rpartition("-")[2] != self._place:
            return Sign.UNKNOWN
        if not self._say(_QUESTION, _address(peer)):
            self._answered.pop(peer, None)
            return Sign.GONE
        answered_at = self._answered.setdefault(peer, -math.inf)  # from now on its answers are taken in
        return Sign.ANSWERS if now - answered_at <= ANSWER_SECONDS else Sign.SILENT

    def close(self) -> None:
        """Others see us gone from now on."""
        if self._socket is not None:
            self._socket.close()

    def _say(self, word: bytes, to: bytes) -> bool:
        """False if nobody has this name. Whoever has too much unread, or has lost its interest, does not hear us."""
        assert self._socket is not None
        try:
            self._socket.sendto(word, to)
        except OSError as error:
            return error.errno != errno.ECONNREFUSED
        return True


def _bound(name: str) -> socket.socket | None:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(_address(name))
    except OSError:
        return None
    return sock


def _address(name: str) -> bytes:
    return b"\0sluice/" + name.encode()


def _name(sender: object) -> str:
    """The name of one of us; empty for whoever has another name, a path, or none (then Python says None)."""
    if not isinstance(sender, bytes) or not sender.startswith(_address("")):
        return ""
    name = sender.removeprefix(_address(""))
    return name.decode() if name.isascii() else ""


def _place() -> str:
    """Eight hex digits for this boot of this machine and this network namespace; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/net")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]
