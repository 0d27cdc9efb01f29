"""What all tests share: where the data is, how many threads a test may use, and which tests run alone."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Golden:
    """A file of reference tensors, with the text metadata of its header."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def pytest_configure(config: pytest.Config) -> None:
    """Workers share the cores: without this, each would start as many threads as there are cores.

    A shell starts what it runs in the background with Ctrl-C ignored, and nohup with hang-ups; commands would inherit
    that from the tests, some of which interrupt them. A signal that is handled here is not ignored there.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def _share_the_machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests marked ``timing`` run while no other worker runs a test, and with all cores.

    A test holds a shared lock, or an exclusive one if it is timed. Both pass a gate first, so that a timed test that
    waits is not overtaken for ever.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        yield
        return
    timed = request.node.get_closest_marker("timing") is not None
    folder = tmp_path_factory.getbasetemp().parent  # the same for all workers of this run
    threads = torch.get_num_threads()
    with (folder / "gate.lock").open("w") as gate, (folder / "machine.lock").open("w") as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if timed else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        if timed:
            torch.set_num_threads(os.cpu_count() or 1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """``tests/data``: reference files that are part of the repository."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real captures, which are too large for the repository: ``shared/data`` beside it. Skips where absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real captures in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def golden(data_dir: Path) -> Callable[[str], Golden]:
    """Reads ``tests/data/NAME.safetensors``."""

    def load(name: str) -> Golden:
        with safe_open(data_dir / f"{name}.safetensors", framework="pt") as file:
            return Golden({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118

    return load
