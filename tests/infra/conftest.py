"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from infra.cli import main


class Ran(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def headwater(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run `headwater ARGUMENTS...` in this process, as the command itself would; for signals and pipes start a process instead."""
    monkeypatch.setattr("streams.cluster.CONNECT_S", 1.0)
    monkeypatch.setattr("infra.cli.topology.REGION_TIMEOUT_S", 1.0)
    monkeypatch.delenv("HEADWATER_CONFIG", raising=False)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["headwater", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return Ran(int(ended.value.code or 0), told.out, told.err)

    return run
