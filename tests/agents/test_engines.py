"""Engines: what is asked for, what is got, and what is said when they differ; and files that no engine can run."""

import logging
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agents.inference import flavours
from agents.inference.engines import EngineFailed, NoEngine, open_engine
from agents.inference.network import UnusableModel, read_network
from schemas.config import Engine


def _doubling(path: Path, side: int | str = "side", op: str = "Add", domain: str = "", inputs: tuple[str, ...] = ()) -> Path:
    """A network that adds its input to itself."""
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])]
    ports += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in inputs]
    node = helper.make_node(op, ["x", "x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> object:
    return read_network(_doubling(tmp_path / "model.onnx"))


def test_an_absent_engine_is_passed_over_and_it_is_said_aloud(network: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="headwater.engine"):
        engine = open_engine(network, 64, Engine(prefer=("cuda", "cpu")))  # type: ignore[arg-type]
    assert (engine.asked, engine.got) == (("cuda", "cpu"), "cpu")
    ((name, reason),) = engine.passed_over
    assert name == "cuda"
    assert "CUDAExecutionProvider" in reason
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (record.asked, record.got) == ("cuda,cpu", "cpu")  # type: ignore[attr-defined]
    assert "CUDAExecutionProvider" in record.reasons  # type: ignore[attr-defined]


def test_the_engine_that_was_asked_for_is_no_warning(network: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="headwater.engine"):
        engine = open_engine(network, 64, Engine(prefer=("cpu", "cuda")))  # type: ignore[arg-type]
    assert (engine.got, engine.passed_over) == ("cpu", ())
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_no_engine_at_all_says_why_and_what_to_do(network: object) -> None:
    with pytest.raises(NoEngine, match=r'tensorrt: .*; cuda: .*add "cpu" at the end of engine\.prefer'):
        open_engine(network, 64, Engine(prefer=("tensorrt", "cuda")))  # type: ignore[arg-type]


def test_it_runs_and_tells_its_ports(network: object) -> None:
    engine = open_engine(network, 64, Engine())  # type: ignore[arg-type]
    assert [str(port) for port in engine.network.inputs] == ["x [N, 3, side, side] float32"]
    assert [(output.name, output.shape) for output in engine.outputs] == [("y", (1, 3, 64, 64))]
    picture = np.arange(3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
    for (output,) in (engine.run({"x": picture}), engine.predict(picture)):
        assert (output == 2 * picture).all()


def test_a_run_that_fails_says_which_engine(network: object) -> None:
    engine = open_engine(network, 64, Engine())  # type: ignore[arg-type]
    with pytest.raises(EngineFailed, match="CPUExecutionProvider"):
        engine.run({"not an input": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "content",
    [b"", b"this is text, not a model\n", os.urandom(3000), b"\xff\xd8\xff\xe0" + bytes(500)],
    ids=["empty", "text", "noise", "jpeg"],
)
def test_a_file_that_is_not_onnx_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnusableModel, match=r"model\.onnx is not an ONNX model"):
        read_network(path)


def test_a_model_cut_short_is_named(tmp_path: Path) -> None:
    path = _doubling(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnusableModel, match=r"model\.onnx"):
        open_engine(read_network(path), 64, Engine())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"nowhere\.onnx cannot be read: No such file"):
        read_network(tmp_path / "nowhere.onnx")
    with pytest.raises(UnusableModel, match="cannot be read: Is a directory"):
        read_network(tmp_path)


def test_operators_that_nobody_knows(tmp_path: Path) -> None:
    network = read_network(_doubling(tmp_path / "model.onnx", op="Conjure", domain="example"))
    with pytest.raises(UnusableModel, match=r"model\.onnx does not load in ONNX Runtime .*Conjure"):
        open_engine(network, 64, Engine())


def test_inputs_that_nobody_can_fill(tmp_path: Path) -> None:
    network = read_network(_doubling(tmp_path / "model.onnx", inputs=("threshold",)))
    with pytest.raises(UnusableModel, match="threshold"):
        open_engine(network, 64, Engine())


# The flavours of ONNX Runtime: told by metadata, as pip leaves it


def _pretend_installed(name: str, folder: Path) -> None:
    info = folder / f"{name.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")


def test_one_flavour_is_right() -> None:
    assert flavours.check_flavours(["onnxruntime 1.32.0"]) == "onnxruntime 1.32.0"
    assert flavours.load_runtime().InferenceSession is not None


def test_none_is_said_with_the_command_that_mends_it() -> None:
    with pytest.raises(flavours.WrongRuntime, match=r"pip install 'headwater\[cpu\]'") as caught:
        flavours.check_flavours([])
    assert "\n" not in str(caught.value)


def test_two_overwrite_each_other_and_no_engine_starts(network: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed("onnxruntime-gpu", tmp_path)
    _pretend_installed("onnxruntime", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("onnxruntime-gpu") == "9.9.9"
    with pytest.raises(
        flavours.WrongRuntime, match=r"onnxruntime 9\.9\.9 and onnxruntime-gpu 9\.9\.9 are installed and overwrite"
    ) as caught:
        open_engine(network, 64, Engine())  # type: ignore[arg-type]
    assert "pip uninstall onnxruntime onnxruntime-gpu" in str(caught.value)
    assert "\n" not in str(caught.value)
