"""What is told of a machine and of weights before torch is loaded is what torch finds later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from segtrain.errors import CheckpointError, TrainingConfigError
from segtrain.run.checkpoints import initialise_weights
from segtrain.run.devices import require_device, surely_lacks_cuda
from segtrain.run.starting_weights import require_starting_weights


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "downloads"))


def test_the_driver_is_asked_as_torch_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert surely_lacks_cuda() is not torch.cuda.is_available()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(TrainingConfigError, match="no CUDA device"):
        require_device("cuda")
    require_device("auto")


def test_a_file_that_is_absent_is_refused_in_the_words_of_the_training(tmp_path: Path) -> None:
    file = tmp_path / "none.pth"
    with pytest.raises(CheckpointError) as early:
        require_starting_weights(str(file))
    with pytest.raises(CheckpointError) as late:
        initialise_weights(torch.nn.Linear(1, 1), str(file))
    assert str(early.value) == str(late.value)
    file.touch()
    require_starting_weights(str(file))
    require_starting_weights(None)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl",
         "detectron2/ImageNetPretrained/MSRA/R-50.pkl"),
        ("http://127.0.0.1:9/weights/R-50.pkl", "weights/R-50.pkl"),
    ],
)  # fmt: skip
def test_weights_that_were_fetched_need_no_network(
    source: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(CheckpointError, match=r"cannot be fetched: .*null to start from random"):
        require_starting_weights(source)
    from detectron2.utils.file_io import PathManager

    fetched = tmp_path / "downloads" / path
    fetched.parent.mkdir(parents=True)
    fetched.touch()
    require_starting_weights(source)
    assert PathManager.get_local_path(source) == str(fetched)


def test_a_server_that_listens_is_left_to_the_download() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_starting_weights(f"http://127.0.0.1:{server.getsockname()[1]}/R-50.pkl")
