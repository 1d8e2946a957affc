"""The state directory: small files, readable by their owner only, on which processes that start at once agree.

    api-key      the key of callers, made by `sluice up` or `sluice keys` when SLUICE_API_KEY is not set
    secret-key   what encrypts in Redis, made by the first process when SLUICE_SECRET_KEY is not set
    redis-url    where the Redis of the `sluice up` that runs in this directory listens; gone when it stops
    redis/       what that Redis keeps: callers' keys and usage, and what was in flight
    .gitignore   keeps all of it out of version control

A file appears whole or not at all: it is written under another name and then linked to its own, which fails if somebody
was faster, and then theirs counts.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

API_KEY = "api-key"
SECRET_KEY = "secret-key"
REDIS_URL = "redis-url"
REDIS_DATA = "redis"
"""The directory of what the Redis of `sluice up` keeps."""


class StateError(Exception):
    """A file of the state directory cannot be used; the text says which and what to do."""


class StateDir:
    """The files in one directory, which is made when the first of them is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> str | None:
        """The content of a file without its line end, None if there is no such file.

        Raises:
            StateError: it cannot be read, is empty, or others on the machine could read it.
        """
        path = self.path / name
        try:
            with path.open(encoding="utf-8") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"cannot read {path}: {_reason(error)}") from error
        if mode & 0o077:
            raise StateError(f"{path} can be read by others (mode {mode:04o}); run `chmod 600 {path}`")
        if not text:
            raise StateError(f"{path} is empty; delete it to have a new one made")
        return text

    def read_or_create(self, name: str, make: Callable[[], str]) -> tuple[str, bool]:
        """The content of a file, which is made if it is not there; and whether this call made it.

        However many processes call this at once, all get the same text.

        Raises:
            StateError: as `read`, or the file cannot be written.
        """
        existing = self.read(name)
        if existing is not None:
            return existing, False
        text = make()
        try:
            if self._write(name, text, replace=False):
                return text, True
        except OSError as error:
            raise StateError(f"cannot write {self.path / name}: {_reason(error)}") from error
        winner = self.read(name)
        if winner is None:
            raise StateError(f"{self.path / name} was deleted while it was read; try again")
        return winner, False

    def write(self, name: str, text: str) -> None:
        """Puts `text` into a file, in place of what it holds.

        Raises:
            StateError: the file cannot be written.
        """
        try:
            self._write(name, text, replace=True)
        except OSError as error:
            raise StateError(f"cannot write {self.path / name}: {_reason(error)}") from error

    def directory(self, name: str) -> Path:
        """A directory, which is made if it is not there.

        Raises:
            StateError: it cannot be made, or made private.
        """
        path = self.path / name
        try:
            self._make()
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise StateError(f"cannot use {path}: {_reason(error)}") from error
        return path

    def remove(self, name: str, *, if_holds: str) -> None:
        """Deletes a file that still holds `if_holds`; one that somebody else wrote stays."""
        with contextlib.suppress(OSError, StateError):
            if self.read(name) == if_holds:
                (self.path / name).unlink()

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = self.path / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")

    def _write(self, name: str, text: str, *, replace: bool) -> bool:
        self._make()
        draft = self.path / f".{name}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            if replace:
                draft.replace(self.path / name)
                return True
            os.link(draft, self.path / name)
            return True
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8 text"


def new_api_key() -> str:
    """A key for callers: a public id of 32 bits, then 256 random bits, both in hex."""
    return f"sk-sluice-{secrets.token_hex(4)}-{secrets.token_hex(32)}"


def new_secret_key() -> str:
    """A key that encrypts: 256 random bits in hex."""
    return secrets.token_hex(32)
