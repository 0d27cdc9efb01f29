"""The image as it was built: who it runs as, what is in it, and the main job in it without network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.records import Record
from bench.store import Store
from tests.integration.container.engine import IMAGE, ROOT, Engine
from tttlrm import __version__
from tttlrm.lpips_weights import default_cache_dir, load_weights

pytestmark = pytest.mark.container

MACHINE = "image"
QUICK = (
    f"machine={MACHINE} quiet=true profile.sampling.limit_s=0.5 profile.sampling.warmup_s=0.1 "
    "profile.datasets.gso.scenes=1 profile.datasets.gso.test_views=1"
)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def records(folder: Path) -> list[Record]:
    store = Store.at(folder / "results", MACHINE, "table1")
    found = [store.read(cell_id) for cell_id in store.record_ids()]
    return [record for record in found if record is not None]


def folder_for(engine: Engine, name: str, uid: int) -> Path:
    """A folder in which a user of this number can write results."""
    folder = engine.folder / name
    (folder / "results").mkdir(parents=True)
    os.chown(folder / "results", uid, uid)
    return folder


def test_labels_user_and_entry_point(image: Engine) -> None:
    config = image.inspect()["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert re.fullmatch(f"{git('rev-parse', 'HEAD')}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert labels["tttlrm.variant"] == "cpu"
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", config["User"])
    assert config["Entrypoint"] == ["tttlrm-bench"]


def test_it_is_small_enough(image: Engine) -> None:
    assert image.inspect()["Size"] <= 1.3e9


def test_nothing_of_the_builder_is_in_it(image: Engine, mounted: Path) -> None:
    """No secret, no address or folder of packages, no cache."""
    configuration = (image.folder / "pip.conf").read_text()
    places = [line.strip() for line in configuration.splitlines() if line.startswith("    ")]
    certificates = re.search(r"^cert = (.+)$", configuration, re.MULTILINE)
    words = [*places, *([certificates[1]] if certificates else []), "127.0.0.1:", str(image.folder)]
    history = image.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE).stdout
    environment = "\n".join(image.inspect()["Config"]["Env"])
    public = ("https://pypi.org/simple", "127.0.0.1:")  # packages name these for reasons of their own
    for word in words:
        assert word not in history and word not in environment
    secrets = [word.encode() for word in words if not word.startswith(public)]
    secrets += [word.split("/", 3)[2].encode() for word in words if word.startswith("http://127.0.0.1")]
    assert secrets and image.folder.name.encode() in b" ".join(secrets)
    found = []
    for path in mounted.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [(path, secret) for secret in secrets if secret in content]
    assert found == []
    for left in ("etc/pip.conf", "run/secrets", "root/.cache", "root/.config", "src", "wheels"):
        assert not (mounted / left).exists(), left
    assert list((mounted / "var/lib/apt/lists").iterdir()) == []
    assert (
        list((mounted / "var/cache/apt").glob("*.bin")) == []
        and list(mounted.glob("var/cache/apt/archives/*.deb")) == []
    )


def test_package_data_and_commit_are_in_it(image: Engine) -> None:
    """The installed package, away from any checkout."""
    listed = image.run("run", "--rm", "--network", "none", IMAGE, "--print-config", "table=table2").stdout
    assert "name: table2" in listed
    checks = (
        "import bench, bench.paper, tttlrm.bundled as bundled; from bench.environment import read_code; "
        "[bundled.bundled_model(name) for name in bundled.BUNDLED]; print(bench.__file__, read_code().commit)"
    )
    printed = image.run("run", "--rm", "--network", "none", "--entrypoint", "python", IMAGE, "-c", checks).stdout
    assert printed.split() == ["/opt/venv/lib/python3.11/site-packages/bench/__init__.py", git("rev-parse", "HEAD")]


def test_any_user_runs_it_with_a_read_only_root_and_no_cache(image: Engine) -> None:
    """As `docker run --read-only` alone would: LPIPS is absent, with the reason."""
    folder = folder_for(image, "any", 54321)
    arguments = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "54321:12345"]
    mount = ["-v", f"{folder}/results:/work/results"]
    cell = ["table=table1", *QUICK.split(), "cells.rows=[1]", "cells.kinds=[quality]"]
    image.run("run", *arguments, *mount, IMAGE, *cell, timeout=200)
    (record,) = records(folder)
    assert record.status == "ok" and record.quality is not None
    assert record.quality.lpips_absent
    assert record.environment.image is None, "nobody stated it"
    assert {path.stat().st_uid for path in (folder / "results").rglob("*.json")} == {54321}


def test_table1_runs_offline_and_its_records_name_the_image(image: Engine) -> None:
    load_weights(default_cache_dir(), offline=False)  # as the suite fetches them where there is a network
    folder = folder_for(image, "table1", 10001)
    output = image.make(
        "docker-run",
        "RUN_OPTIONS=--network none --user 10001:10001",
        f"ARGS=table=table1 profile=tiny {QUICK}",
        folder=folder,
    )
    assert "table1-tiny.md" in output
    found = records(folder)
    assert len(found) == 16 and {record.status for record in found} == {"ok"}, output
    digest = f"sha256:{image.inspect()['Id'].removeprefix('sha256:')}"
    assert {record.environment.image for record in found} == {digest}
    assert {record.environment.code.commit for record in found} == {git("rev-parse", "HEAD")}
    views = [view for r in found if r.quality is not None for scene in r.quality.scenes for view in scene.views]
    assert views and all(view.lpips is not None for view in views)
    table = (folder / "results" / __version__ / MACHINE / "table1" / "table1-tiny.md").read_text()
    assert "not comparable" in table


def test_the_other_command_and_a_missing_image(image: Engine, tmp_path: Path) -> None:
    assert "usage: tttlrm" in image.make("docker-run", "ARGS=--tttlrm --help", folder=tmp_path)
    command = ["docker/image", "run"]
    environment = {**image.environment, "IMAGE": "localhost/ci/no-such-image"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "has no image localhost/ci/no-such-image here" in done.stderr


def test_compose_gets_the_image_that_was_built(image: Engine) -> None:
    noted = dict(line.split("=", 1) for line in (image.folder / "compose.env").read_text().splitlines())
    assert image.run("image", "inspect", "--format", "{{.Id}}", noted["TTTLRM_IMAGE_DIGEST"]).stdout.strip()
    assert noted["TTTLRM_IMAGE_DIGEST"] == f"sha256:{image.inspect()['Id'].removeprefix('sha256:')}"


def test_the_list_of_what_is_in_it(image: Engine) -> None:
    image.make("sbom", folder=image.folder)
    document = json.loads((ROOT / "build" / "sbom-cpu.cdx.json").read_text())
    purls = {component["purl"] for component in document["components"] if "purl" in component}
    assert document["bomFormat"] == "CycloneDX"
    assert any(purl.startswith("pkg:pypi/numpy@") for purl in purls)
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)
    assert not any("pytest" in purl or "mypy" in purl for purl in purls)
    assert "127.0.0.1" not in json.dumps(document)


@pytest.mark.parametrize("name", ["Dockerfile"])
def test_the_linter_has_nothing_to_say(name: str) -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint (make test-container)")
    command = [linter, "--config", "docker/hadolint.yaml", f"docker/{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
