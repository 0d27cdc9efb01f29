"""The image, built once from the Dockerfile as it is; `make test-container` installs what that needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.container.engine import BASE_IMAGE, IMAGE, NEEDED, Engine
from tests.integration.container.pip_access import build_secrets


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {', '.join(missing or NEEDED)} (make test-container)")
    folder = Path(tempfile.mkdtemp(prefix="tttlrm-container-", dir="/var/tmp"))
    folder.chmod(0o755)  # for the users that containers run as
    made = Engine.at(folder)
    try:
        made.make_base_image()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Engine:
    """The engine, once it has built the cpu variant by `make docker`."""
    with build_secrets(engine.folder) as secrets:
        arguments = ["--pull=never", "--format", "docker", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", *secrets]
        output = engine.make("docker", f"ARGS={' '.join(arguments)}", folder=engine.folder, timeout=900)
    print(output.splitlines()[-1])
    return engine


@pytest.fixture
def mounted(image: Engine) -> Iterator[Path]:
    """The image's files."""
    yield Path(image.run("image", "mount", IMAGE).stdout.strip())
    image.run("image", "umount", IMAGE)
