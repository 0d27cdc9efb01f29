"""What is in an image, as a CycloneDX document: its Python packages (by cyclonedx-py) and its Debian packages.

    python sbom.py --engine docker --image sha256:... --output sbom.cdx.json

Run with a Python that has cyclonedx-bom (docker/tools.txt). The image itself needs nothing for it, and is only read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

_METADATA = "cd /opt/venv/lib/python3*/site-packages && exec tar c *.dist-info"
_PACKAGES = ["-W", "-f", "${Package}\t${Version}\t${Architecture}\n"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", required=True, help="docker or podman")
    parser.add_argument("--image", required=True, help="its digest")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document = python_packages(run_in(options, "sh", "-c", _METADATA), Path(folder))
    document["components"] += debian_packages(run_in(options, "dpkg-query", *_PACKAGES).decode())
    document["metadata"]["component"] = described_image(options)
    document["dependencies"] = [one for one in document["dependencies"] if one["ref"] != "root-component"]
    text = json.dumps(document, indent=2) + "\n"
    validate(text)
    temporary = options.output.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, options.output)
    print(f"{options.output}: {len(document['components'])} packages")


def run_in(options: argparse.Namespace, program: str, *arguments: str) -> bytes:
    """Output of a program of the image, without network."""
    command = [
        options.engine,
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--entrypoint",
        program,
        options.image,
    ]
    return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE).stdout


def python_packages(metadata: bytes, folder: Path) -> dict[str, Any]:
    """An environment of nothing but the packages' metadata is all that cyclonedx-py reads."""
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    (packages,) = (folder / "environment").glob("lib/python3*/site-packages")
    with tarfile.open(fileobj=BytesIO(metadata)) as archive:
        # One by one: extractall's own safe way is missing in Python 3.11.2, which Debian 12 has.
        for member in archive:
            if not (packages / member.name).resolve().is_relative_to(packages.resolve()):
                raise ValueError(f"{member.name}: a file of a package's metadata that lies outside of the packages")
            if member.isfile():
                archive.extract(member, packages)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON"]
    command.append(str(folder / "environment/bin/python"))
    made: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return made


def debian_packages(listing: str) -> list[dict[str, Any]]:
    components = []
    for line in listing.splitlines():
        name, version, architecture = line.split("\t")
        address = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
        components.append({"type": "library", "bom-ref": address, "name": name, "version": version, "purl": address})
    return components


def described_image(options: argparse.Namespace) -> dict[str, Any]:
    """The image as what the document is about, by its labels."""
    command = [options.engine, "image", "inspect", "--format", "{{json .Config.Labels}}", options.image]
    labels = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "type": "container",
        "bom-ref": "image",
        "name": labels["org.opencontainers.image.title"],
        "version": labels["org.opencontainers.image.version"],
        "hashes": [{"alg": "SHA-256", "content": options.image.removeprefix("sha256:")}],
        "properties": [{"name": name, "value": value} for name, value in sorted(labels.items())],
    }


def validate(text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    version = SchemaVersion.from_version(json.loads(text)["specVersion"])
    problem = JsonStrictValidator(version).validate_str(text)
    if problem is not None:
        raise SystemExit(f"error: the document is not valid CycloneDX: {problem}")


if __name__ == "__main__":
    main()
