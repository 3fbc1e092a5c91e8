"""`headwater models` as a person and a program use it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from infra.cli.models import models


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(models, list(arguments))


def _constant_output(path: Path, shape: tuple[int, ...], side: int | str = 64) -> Path:
    """A network of a given output that does not look at its picture."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])
    zero = helper.make_node("Mul", ["mean", "zero"], ["nothing"])
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        zero,
        helper.make_node("Add", ["nothing", "table"], ["output0"]),
    ]
    constants = [numpy_helper.from_array(np.zeros(shape, np.float32), "table"), numpy_helper.from_array(np.float32(0), "zero")]
    graph = helper.make_graph(nodes, "g", [image], [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_check_tells_family_engine_and_time(tmp_path: Path) -> None:
    path = _constant_output(tmp_path / "yolo.onnx", (1, 84, 84))
    result = _run("check", str(path), "--engine", "cuda", "--engine", "cpu", "--runs", "3", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"family": "yolov8", "classes": 80} in report["fits"]
    assert (report["asked"], report["got"], report["side"]) == (["cuda", "cpu"], "cpu", 64)
    assert "CUDAExecutionProvider" in report["passed_over"]["cuda"]
    assert 0 < report["p50_ms"] <= report["p95_ms"]
    text = _run("check", str(path), "--runs", "3")
    assert text.exit_code == 0
    for words in ("yolov8 with 80 classes", "not cuda", 'family = "yolov8"', "sizes = [64]"):
        assert words in text.stdout


def test_check_of_a_model_that_no_family_reads(tmp_path: Path) -> None:
    result = _run("check", str(_constant_output(tmp_path / "odd.onnx", (1, 2, 3, 4, 5))), "--runs", "1")
    assert result.exit_code == 1
    assert "no detector family fits" in result.stderr
    assert "yolov8 expects one output" in result.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere.onnx", "cannot be read"),
        (lambda folder: _text(folder / "text.onnx"), "is not an ONNX model"),
    ],
)
def test_check_of_what_is_no_model(make: object, words: str, tmp_path: Path) -> None:
    result = _run("check", str(make(tmp_path)))  # type: ignore[operator]
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_check_at_a_size_that_the_model_does_not_take(tmp_path: Path) -> None:
    result = _run("check", str(_constant_output(tmp_path / "m.onnx", (1, 84, 84))), "--size", "320")
    assert result.exit_code == 1
    assert "64 x 64 only" in result.stderr


def test_fetch_prepare_and_list_agree() -> None:
    fetched = json.loads(_run("fetch", "--json").stdout)
    assert {Path(row["path"]).name for row in fetched} == {"nanodet.json", "nanodet.bin", "vtest.avi"}
    assert all(Path(row["path"]).is_file() for row in fetched)
    (prepared,) = json.loads(_run("prepare", "--json").stdout)
    assert (prepared["precision"], prepared["side"]) == ("int8", 224)
    listed = json.loads(_run("list", "--json").stdout)
    assert prepared in listed
    assert "nanodet-g" in _run("list").stdout


def test_list_of_nothing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path))
    assert "headwater models prepare" in _run("list").stdout
    assert json.loads(_run("list", "--json").stdout) == []


@pytest.mark.parametrize(
    "arguments", [("prepare", "--size", "100"), ("prepare", "--size", "224", "-c", "x.toml"), ("check",), ("prepare", "--size", "0")]
)
def test_wrong_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert _run(*arguments).exit_code == 2


def test_a_configuration_with_a_model_of_its_own_has_nothing_to_prepare(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('name = "leaf-1"\ntier = "leaf"\n[detector]\nmodel = "mine.onnx"\nfamily = "yolov8"\n')
    result = _run("prepare", "-c", str(site))
    assert result.exit_code == 1
    assert "headwater models check mine.onnx" in result.stderr


@pytest.mark.parametrize("command", ["fetch", "prepare", "list", "check"])
def test_help_has_examples(command: str) -> None:
    assert f"headwater models {command}" in _run(command, "--help").stdout


def _text(path: Path) -> Path:
    path.write_text("no model")
    return path
