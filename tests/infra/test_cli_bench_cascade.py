"""What `headwater bench cascade` says to what it cannot use: one clear line, and before it has worked for minutes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from infra.cli.bench_cascade import cascade


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cascade, list(arguments))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of grey."""
    path = tmp_path_factory.mktemp("video") / "grey.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(20):
        writer.write(np.full((48, 64, 3), 128, np.uint8))
    writer.release()
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """One person in the first second."""
    path = tmp_path / "gt.txt"
    path.write_text("".join(f"{frame},1,10,10,8,20,1,1,1\n" for frame in range(1, 11)))
    return path


def fails(said: str, *arguments: str, code: int = 1) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.output
    assert "looking at" not in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_text("hi")
    fails("no.mp4 cannot be read as a video", "--video", str(tmp_path / "no.mp4"))
    fails("there is no video", "--video", str(tmp_path / "none.mp4"))


def test_labels_are_read_before_anything_is_looked_at(video: Path, tmp_path: Path) -> None:
    fails("no such file", "--video", str(video), "--labels", str(tmp_path / "none.txt"))


def test_nothing_to_score_is_said(video: Path, labels: Path) -> None:
    fails("so nothing would be scored", "--video", str(video), "--labels", str(labels), "--skip", "2")
    fails("no frame from 16 on has labels", "--video", str(video), "--labels", str(labels), "--skip", "1.5")
    fails("has no zebra to find", "--video", str(video), "--labels", str(labels), "--classes", "zebra")


def test_a_model_that_is_named_wrongly_says_what_is_expected() -> None:
    fails("expected a whole number from 32", "--leaf", "nanodet-g@7")
    fails("cannot be read", "--region", "nowhere.toml")


@pytest.mark.parametrize("option", [("--budgets", "0"), ("--budgets", "5,x"), ("--policies", "guess"), ("--delay", "0")])
def test_wrong_options_are_usage_errors(option: tuple[str, str]) -> None:
    fails("Invalid value", *option, code=2)
