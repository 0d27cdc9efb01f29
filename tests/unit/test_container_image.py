"""What records say of the image that they were made in: its digest, and the commit that it was built of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.clusters import Container, SlurmCluster
from bench.environment import Code, read_code
from bench.errors import SettingsError
from bench.settings import load_settings
from bench.slurm.images import image_digest
from bench.slurm.resources import Resources, sbatch_text

DIGEST = "sha256:" + "0123456789abcdef" * 4


def script(*overrides: str) -> str:
    cluster = load_settings(["cluster=slurm", *overrides]).cluster
    assert isinstance(cluster, SlurmCluster)
    return sbatch_text(cluster, Resources(1, 1, 0), Path("/logs"), "job")


def test_a_job_states_the_digest_of_its_image_file(tmp_path: Path) -> None:
    image = tmp_path / "suite image.sif"
    image.write_bytes(b"an image")
    command = "apptainer exec {image}"
    text = script(f"cluster.container={{form: prefix, command: '{command}', image: '{image}'}}")
    assert f"export TTTLRM_IMAGE_DIGEST=sha256:{hashlib.sha256(b'an image').hexdigest()}\n" in text
    assert f"apptainer exec '{image}' python" in text
    image.write_bytes(b"another image")
    text = script(f"cluster.container={{form: pyxis, image: '{image}'}}")
    assert f"export TTTLRM_IMAGE_DIGEST=sha256:{hashlib.sha256(b'another image').hexdigest()}\n" in text


def test_a_digest_is_stated_named_or_absent_and_never_that_of_the_submitting_process() -> None:
    def digest(**values: str) -> str | None:
        return image_digest(Container.model_validate({"form": "pyxis", "image": "/no/image.sqsh", **values}))

    assert digest(digest=DIGEST) == DIGEST
    assert digest(image=f"docker://registry/suite@{DIGEST}") == DIGEST
    assert digest() is None
    assert "unset TTTLRM_IMAGE_DIGEST\n" in script("cluster.container={form: pyxis, image: /no/image.sqsh}")
    assert "TTTLRM_IMAGE_DIGEST" not in script()


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("{form: prefix, command: 'run {image}'}", "has image where"),
        ("{form: prefix, command: run, image: x}", "has image where"),
        ("{form: pyxis, image: x, digest: md5:12}", "digest"),
    ],
)
def test_impossible_images_are_named(container: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(["cluster=slurm", f"cluster.container={container}"])


@pytest.mark.parametrize(("state", "dirty"), [("", False), ("-dirty", True)])
def test_an_image_knows_the_commit_that_it_was_built_of(tmp_path: Path, state: str, dirty: bool) -> None:
    (tmp_path / "bench").mkdir()
    commit = "0123456789" * 4
    (tmp_path / "bench" / "commit.txt").write_text(f"{commit}{state}\n")
    assert read_code(tmp_path) == Code(commit=commit, dirty=dirty)
