"""A wrong time of day for processes, JVMs too: a small library that is preloaded into them (clock.c), built here when it is needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from schemas.errors import Fault

SOURCE = Path(__file__).with_name("clock.c")


class NoCompiler(Fault, RuntimeError):
    """Nothing here can build the library."""


def clock_environment(folder: Path, offset_s: float) -> dict[str, str]:
    """What makes the processes that get it see a time of day that is so many seconds off; their monotonic clock stays right."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("a wrong clock needs a C compiler: install one (Debian and Ubuntu: apt-get install gcc libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "clock.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"], check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "HEADWATER_CLOCK_S": f"{offset_s:.0f}"}
