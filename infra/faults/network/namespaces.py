"""Network namespaces: made with a name that tells whose they are, entered by a thread, and removed with all that runs in them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from infra.faults.network import NetworkUnavailable

log = logging.getLogger("headwater.network")

RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_OURS = re.compile(r"hw-(\d+)-(\d+)-[0-9a-f]{6}[ab]\Z")  # pid and start of who made it
_COMMAND_S = 20.0
_GONE_S = 5.0


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """A network of its own: its name for `ip netns`, and the address of its end of the wire."""

    name: str
    address: str

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within it this thread is in the namespace, and so are the processes and threads that are started from it (those of a Kafka client
        too). Other threads are not; a socket stays where it was made."""
        with open("/proc/thread-self/ns/net", "rb") as before, open(RUN / self.name, "rb") as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(before.fileno())

    def command(self, argv: Sequence[str]) -> list[str]:
        """A command as it is run in the namespace from wherever it is started."""
        return ["ip", "netns", "exec", self.name, *argv]


def enter(descriptor: int) -> None:
    """Move this thread into a namespace (setns(2)); `os.setns` is there from Python 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NetworkUnavailable(f"the namespace cannot be entered: {os.strerror(number)}")


def check() -> None:
    """Raise `NetworkUnavailable`, with all that is missing, unless networks can be made here."""
    missing = []
    if sys.platform != "linux":
        missing.append("Linux")
    if os.geteuid() != 0:
        missing.append("root (run it with sudo)")
    if shutil.which("ip") is None:
        missing.append("the command ip (Debian and Ubuntu: apt-get install iproute2)")
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun (modprobe tun; in a container: --device /dev/net/tun --cap-add NET_ADMIN,SYS_ADMIN)")
    if missing:
        raise NetworkUnavailable("networks cannot be made on this machine; missing: " + "; ".join(missing))


def ip(*arguments: str, namespace: str | None = None) -> str:
    """Run `ip`; returns what it prints. Raises `NetworkUnavailable` with what it says."""
    argv = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_COMMAND_S).stdout
    except subprocess.CalledProcessError as error:
        raise NetworkUnavailable(f"{' '.join(argv)}: {error.stderr.strip() or error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise NetworkUnavailable(f"{' '.join(argv)} did not end within {_COMMAND_S:g} s") from None


def pair(near: str, far: str) -> tuple[Namespace, Namespace]:
    """Make two namespaces with loopback up; the addresses are those that their ends of a wire will have."""
    stem = f"hw-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:6]}"
    made = []
    try:
        for letter, address in (("a", near), ("b", far)):
            space = Namespace(name=stem + letter, address=address)
            ip("netns", "add", space.name)
            made.append(space)
            for name in ("all", "default"):  # no talk of its own on the wire
                with space.inside():
                    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            ip("link", "set", "lo", "up", namespace=space.name)
    except BaseException:
        for space in made:
            remove(space.name)
        raise
    return made[0], made[1]


def remove(name: str) -> None:
    """Kill what runs in a namespace and remove it; nothing happens if it is not there."""
    if not (RUN / name).exists():
        return
    deadline = time.monotonic() + _GONE_S
    while pids := [int(pid) for pid in ip("netns", "pids", name).split() if int(pid) != os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            log.warning("processes of a namespace do not die", extra={"namespace": name, "pids": pids})
            break
        time.sleep(0.02)
    ip("netns", "del", name)


def sweep() -> list[str]:
    """Remove the namespaces of those of us that are gone without having done so (`kill -9`); returns their names."""
    swept = []
    for path in sorted(RUN.glob("hw-*")) if RUN.is_dir() else ():
        match = _OURS.match(path.name)
        if match is not None and _started(int(match[1])) != int(match[2]):
            with contextlib.suppress(NetworkUnavailable):  # another sweep was quicker
                remove(path.name)
            swept.append(path.name)
    if swept:
        log.warning("namespaces that were left behind are removed", extra={"namespaces": swept})
    return swept


def _started(pid: int) -> int:
    """When a process was started; 0 if there is none."""
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0
