"""What the supervisor and the launcher say to each other.

A request for a process is a message with descriptors: first a sealed memfd with the `AppSpec` or
`SidecarSpec`, then the descriptors that the spec's numbers count. Only the child reads the memfd:
the environment of an app, secrets and all, never enters the launcher's memory, and so is in no
sidecar forked from it.
"""

import fcntl
import os

import msgspec

__all__ = [
    "MESSAGE_LIMIT",
    "AppSpec",
    "Credentials",
    "EndRequested",
    "Exited",
    "FromLauncher",
    "SidecarSpec",
    "SpawnFailed",
    "SpawnRequested",
    "Spawned",
    "ToLauncher",
    "read_spec",
    "seal",
]

# Requests and answers are a few numbers; what is large is in the memfd.
MESSAGE_LIMIT = 4096
DESCRIPTOR_LIMIT = 250  # SCM_MAX_FD is 253


class Credentials(msgspec.Struct, frozen=True):
    """Whom a child becomes; `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class AppSpec(msgspec.Struct, frozen=True, kw_only=True, tag="app"):
    """A program to execute. Descriptors: memfd, stdin, stdout, stderr, status pipe.

    Words, folder and environment are bytes: what the caller's environment has need not be UTF-8.
    `limits` maps a number of `resource.RLIMIT_*` to its soft and hard value, `nice` is that of
    setpriority(2). With a `cgroup`, its own, it must get in there if `confined`. With `terminal`
    stdin is one, and becomes that of its session.
    """

    name: str
    argv: tuple[bytes, ...]
    cwd: bytes
    environment: dict[bytes, bytes]
    limits: dict[int, tuple[int, int]] = {}
    nice: int | None = None
    credentials: Credentials | None = None
    cgroup: str | None = None
    confined: bool = False
    terminal: bool = False


class SidecarSpec(msgspec.Struct, frozen=True, kw_only=True, tag="sidecar"):
    """A sidecar to fork. Descriptors: memfd, stdin, stdout, stderr, channel, then listeners.

    `listeners` names those: "" is the inbound one, everything else an upstream.
    """

    name: str
    listeners: tuple[str, ...]
    credentials: Credentials | None = None
    cgroup: str | None = None


class SpawnRequested(msgspec.Struct, frozen=True, kw_only=True, tag="spawn"):
    """The launcher shall fork; its answer carries the same number.

    `cgroup` is that of the run, which the launcher removes if it must end the run.
    """

    request: int
    cgroup: str | None = None


class EndRequested(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """The launcher shall end what is left, after a grace of `grace_s` seconds, and then itself."""

    grace_s: float


class Spawned(msgspec.Struct, frozen=True, kw_only=True, tag="spawned"):
    """The child lives; its pidfd came with the message."""

    request: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True, kw_only=True, tag="spawn-failed"):
    """No child was made."""

    request: int
    reason: str


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """A child ended; `status` as waitpid(2) gives it."""

    pid: int
    status: int


ToLauncher = SpawnRequested | EndRequested
FromLauncher = Spawned | SpawnFailed | Exited


def seal(spec: AppSpec | SidecarSpec) -> int:
    """Put a spec into a memfd that nobody can change any more, and return the descriptor."""
    descriptor = os.memfd_create("meshrun-spec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        payload = memoryview(msgspec.msgpack.encode(spec))
        while payload:
            payload = payload[os.write(descriptor, payload) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_spec(descriptor: int) -> AppSpec | SidecarSpec:
    """Read a spec from its memfd."""
    size = os.fstat(descriptor).st_size
    payload = os.pread(descriptor, size, 0)
    return msgspec.msgpack.decode(payload, type=AppSpec | SidecarSpec)
