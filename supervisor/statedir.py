"""The state folder: opened once, held by a descriptor, locked while a run owns it.

Everything inside is reached through the descriptor: a socket path may be 107 bytes long at most,
and a folder that is moved or replaced under a run must not redirect it.
"""

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from meshrun.supervisor.errors import MeshrunError, NotRunningError

__all__ = ["CONTROL_SOCKET", "AlreadyLockedError", "StateDir"]

CONTROL_SOCKET = "control.sock"


class AlreadyLockedError(MeshrunError):
    """Another supervisor owns the state folder."""


class StateDir:
    """An open state folder; only its owner (and root) can look into it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *, create: bool) -> "StateDir":
        """Open it; with `create` make it if it is not there.

        Raises NotRunningError if it is not there, MeshrunError if it is a symbolic link, belongs to
        somebody else or is open to others: whoever can write there can become any service.
        """
        if create:
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise MeshrunError(
                    f"cannot make the state folder {path}: {error.strerror}"
                ) from error
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotRunningError(f"no mesh runs here: there is no state folder {path}") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
                why = "it is a symbolic link; name the real folder"
            else:
                why = os.strerror(error.errno or 0)
            raise MeshrunError(f"cannot use the state folder {path}: {why}") from error
        try:
            cls._check(path, os.fstat(descriptor))
        except MeshrunError:
            os.close(descriptor)
            raise
        opened = cls(path, descriptor)
        if create and opened.read(".gitignore") is None:
            # root.key makes whoever has it any service: it must not get into a repository.
            opened.write(".gitignore", b"*\n")
        return opened

    @staticmethod
    def _check(path: Path, found: os.stat_result) -> None:
        if found.st_uid not in (os.geteuid(), 0) or (os.geteuid() == 0 and found.st_uid != 0):
            raise MeshrunError(
                f"cannot use the state folder {path}: it belongs to uid {found.st_uid}, "
                f"not to you (uid {os.geteuid()})"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise MeshrunError(
                f"cannot use the state folder {path}: others may enter it "
                f"(mode {stat.S_IMODE(found.st_mode):o}); run: chmod 700 {path}"
            )

    def file(self, name: str) -> Path:
        """Return a path to something inside that holds however long the folder's own path is."""
        return Path(f"/proc/self/fd/{self.descriptor}/{name}")

    def lock(self) -> None:
        """Become the owner until this process ends; raises AlreadyLockedError if there is one.

        The kernel drops the lock with the process: there is no stale lock.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyLockedError(f"a mesh runs already in {self.path}") from error

    def listen(self) -> socket.socket:
        """Bind the control socket, replacing what a killed run left; the lock must be held."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path = self.file(CONTROL_SOCKET)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
        return listener

    def connect(self, timeout_s: float) -> socket.socket:
        """Connect to the supervisor; raises NotRunningError if none answers."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.file(CONTROL_SOCKET)))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise NotRunningError(f"no mesh runs in {self.path}") from error
        except OSError as error:
            connection.close()
            raise MeshrunError(f"cannot reach the mesh in {self.path}: {error}") from error
        return connection

    def write(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Replace a file as a whole: whoever reads it sees the old or the new one.

        With `durable` that also holds after a loss of power.
        """
        temporary = f"{name}.new"
        descriptor = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self.descriptor,
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        try:
            return self.file(name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        self.file(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the descriptor, and with it the lock, back."""
        os.close(self.descriptor)
