"""Make the virtual environment: the right build of torch first, then what this package needs, then the package.

Run by ``make setup`` with Python 3.11 or 3.12; needs nothing but the standard library. Repeating it completes what is
there. Everything is installed from ``locks/``, that is, in an exact version, from a file whose sha256 is known.

On Linux the plain ``torch`` of the package index is a CUDA build of several GB, so on a machine without a GPU torch is
asked for as a CPU build by name and nothing else is accepted.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

TORCH = "2.13.0"  # what CPU machines and CI use, exactly
TORCH_SERIES = ("2.11.", "2.12.", "2.13.")  # what a CUDA machine may bring
ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements" / "locks"


class SetupError(Exception):
    """What went wrong and what to do, in a sentence or two."""


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch: its version, and the CUDA version it was built for (None for a CPU build)."""

    version: str
    cuda: str | None

    @property
    def is_usable(self) -> bool:
        """A CPU build must be the tested version exactly; a CUDA build may be of any supported series."""
        if self.cuda is None:
            return self.version.split("+")[0] == TORCH
        return self.version.startswith(TORCH_SERIES)

    @property
    def kind(self) -> str:
        return "cpu" if self.cuda is None else "cuda"

    def __str__(self) -> str:
        return f"torch {self.version} ({'CPU build' if self.cuda is None else 'CUDA ' + self.cuda + ' build'})"


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(command: list[str]) -> bool:
    """Run a command with its output visible; whether it succeeded."""
    print("+ " + " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0


def pip(python: Path, *arguments: str) -> bool:
    return run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", *arguments])


def lock_arguments(*locks: str) -> list[str]:
    """What makes an installer install these locks and refuse any other file."""
    files = [argument for lock in locks for argument in ("-r", str(LOCKS / f"{lock}.txt"))]
    return ["--require-hashes", *files]


def installed_torch(python: Path) -> TorchBuild | None:
    """The torch that this interpreter imports; None when it has none (or one that cannot be imported)."""
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        return None
    version, cuda = json.loads(done.stdout.splitlines()[-1])
    return TorchBuild(version, cuda)


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver answers and lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return done.returncode == 0 and "GPU " in done.stdout


def make_environment(venv: Path, variant: str) -> Path:
    """Create the virtual environment unless it is there; its interpreter."""
    python = venv / "bin" / "python"
    if python.exists():
        say(f"completing the environment {venv}")
    else:
        say(f"creating the environment {venv} with Python {platform.python_version()}")
        if not run([sys.executable, "-m", "venv", str(venv)]):
            raise SetupError(f"{sys.executable} could not create {venv}; on Debian and Ubuntu, install python3-venv")
        base = installed_torch(Path(sys.executable)) if variant != "cpu" else None
        if base is not None and base.kind == "cuda" and base.is_usable:
            say(f"it shares the packages of {sys.executable}, which has {base}")
            share_packages(venv)
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))"
    if subprocess.run([str(python), "-c", check]).returncode != 0:
        raise SetupError(f"{python} is not a working Python 3.11 or 3.12: remove {venv} and run this again")
    return python


def share_packages(venv: Path) -> None:
    """Let the environment fall back on the packages of the Python that runs this.

    Not by ``--system-site-packages``: where this Python is itself that of an environment, that option reaches the
    packages of the Python below it. Paths in a .pth file come after the environment's own packages.
    """
    own = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    folders = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]  # shared in turn
    existing = [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]
    (own / "shared_packages.pth").write_text("".join(f"{folder}\n" for folder in existing))


def install_cpu_torch(python: Path) -> None:
    """Install the CPU build of torch, and never a CUDA build.

    The label ``+cpu`` in the lock can only match a CPU build. It is found wherever pip is configured with an index or a
    folder that has one. Otherwise uv finds it, as uv knows where the CPU builds are published.
    """
    wanted = lock_arguments("torch-cpu")
    if pip(python, *wanted):
        return
    say("pip's own configuration leads to no CPU build of torch: trying uv, which knows where they are")
    uv = [str(python), "-m", "uv", "pip", "install", "--python", str(python), "--torch-backend", "cpu", "--no-deps"]
    if not (pip(python, *lock_arguments("uv")) and run([*uv, *wanted])):
        raise SetupError(
            f"the CPU build of torch {TORCH} could not be installed. If this machine has no network, let pip find a "
            f"folder with torch-{TORCH}+cpu*.whl (its option find-links) and run this again."
        )


def ensure_torch(python: Path, variant: str) -> str:
    """Keep the torch that is there if it will do, else install one; ``cpu`` or ``cuda``.

    To pip, the CPU build of the same version would do for the CUDA build, so it has to be told to replace it.
    """
    present = installed_torch(python)
    usable = present is not None and present.is_usable
    if variant == "auto":
        has_cuda_build = present is not None and usable and present.cuda is not None
        variant = "cuda" if has_cuda_build or has_nvidia_gpu() else "cpu"
    if present is not None and usable and variant == present.kind:
        say(f"keeping {present}")
        return variant
    say(f"installing torch {TORCH}, {variant.upper()} build")
    if variant == "cpu":
        install_cpu_torch(python)
    elif not pip(python, *(["--force-reinstall"] if present else []), *lock_arguments("torch-cuda")):
        raise SetupError(f"torch {TORCH} could not be installed: see the message above")
    return variant


def install_packages(python: Path, variant: str, *, dev: bool) -> None:
    """Install everything else from the locks, and then this package.

    What builds packages comes first and into the environment itself, so that a build uses locked versions, too.
    """
    say("installing this package and what it needs")
    locks = ["run", *(["cuda"] if variant == "cuda" else []), *(["dev"] if dev else [])]
    ok = (
        pip(python, *lock_arguments("build"))
        and pip(python, "--no-build-isolation", *lock_arguments(*locks))
        and pip(python, "--no-build-isolation", "-e", ".")
    )
    if not ok:
        raise SetupError("the packages could not be installed: see pip's message above")


def check_torch(python: Path, variant: str) -> TorchBuild:
    """The torch that came of it, if it is the one that was asked for."""
    build = installed_torch(python)
    if build is None:
        raise SetupError(f"torch was installed, but cannot be imported; this shows why: {python} -c 'import torch'")
    if not build.is_usable or build.kind != variant:
        raise SetupError(
            f"the {variant.upper()} build of torch {TORCH} was asked for, but {build} is installed: "
            "remove the environment and run this again"
        )
    return build


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True, help="folder of the virtual environment")
    parser.add_argument(
        "--torch",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: what is there already if it will do, else a CUDA build if there is an NVIDIA GPU, else a CPU build",
    )
    parser.add_argument("--dev", action="store_true", help="also what the tests and the style checks need")
    options = parser.parse_args()
    try:
        python = make_environment(options.venv.absolute(), options.torch)
        variant = ensure_torch(python, options.torch)
        install_packages(python, variant, dev=options.dev)
        build = check_torch(python, variant)
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 2
    say(f"ready: {build}, in {options.venv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
