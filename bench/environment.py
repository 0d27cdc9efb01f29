"""Where a record was made: code, packages, machine. Absent facts are None, never guessed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from bench.devices import Gpu, list_gpus
from bench.schema import Frozen

_PACKAGES = ("torch", "numpy", "gsplat", "flash-attn", "xformers", "triton", "scikit-image", "scikit-learn", "submitit")
_REPOSITORY = Path(__file__).resolve().parents[1]
_BUILT_OF = Path("bench", "commit.txt")
"""In an image: the commit that it was built of, with ``-dirty`` behind it if files differed from that."""
DIGEST_VARIABLE = "TTTLRM_IMAGE_DIGEST"
"""An image cannot know its own digest, so whoever starts it states it in this variable."""


class Code(Frozen):
    """The commit that ran, and whether tracked or new source files differed from it."""

    commit: str | None
    dirty: bool | None


class Environment(Frozen):
    code: Code
    python: str
    packages: dict[str, str]
    os: str
    cpu: str
    cpu_cores: int
    """That this process may use."""
    memory_mib: int | None
    threads: int
    """Of PyTorch's operators."""
    gpus: tuple[Gpu, ...]
    cuda: str | None
    cudnn: str | None
    nccl: str | None
    host: str
    """A short hash of the host's name: equal or not is what matters, and names may hold a person's."""
    job: str | None
    """Of the cluster's scheduler."""
    image: str | None
    """Digest of the container image, where the launcher states it."""


def read_environment(use_gpu: bool) -> Environment:
    """The facts of this process and machine; ``use_gpu``: list the visible GPUs too."""
    import torch

    cuda = torch.version.cuda if use_gpu else None
    return Environment(
        code=read_code(),
        python=platform.python_version(),
        packages=_packages(),
        os=_os_name(),
        cpu=cpu_name(),
        cpu_cores=usable_cores(),
        memory_mib=_memory_mib(),
        threads=torch.get_num_threads(),
        gpus=tuple(list_gpus()) if use_gpu else (),
        cuda=cuda,
        cudnn=str(torch.backends.cudnn.version()) if cuda and torch.backends.cudnn.is_available() else None,
        nccl=_nccl() if cuda else None,
        host=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        job=os.environ.get("SLURM_JOB_ID"),
        image=os.environ.get(DIGEST_VARIABLE),
    )


def machine_label(device: str) -> str:
    """Name of the machine's folder of results: ``nvidia-h100-80gb-hbm3-x1``, ``amd-epyc-2-cores``."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return slug(f"{cpu_name()} {usable_cores()} cores")
        names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
        return slug(f"{names[0]} x{len(names)}")
    return slug(f"{cpu_name()} {usable_cores()} cores")


def slug(text: str) -> str:
    """Lower case, with hyphens between words; trademarks and clock rates left out."""
    text = re.sub(r"\((?:r|tm|c)\)|@.*?ghz|\bcpu\b|\bprocessor\b|\b\d+-core\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def read_code(repository: Path = _REPOSITORY) -> Code:
    """From git where the suite runs from a checkout; records that a run made do not count as a change. Otherwise from
    the note that an image has."""
    commit = _git(repository, "rev-parse", "HEAD")
    if commit is None:
        try:
            commit, _, state = (repository / _BUILT_OF).read_text(encoding="utf-8").strip().partition("-")
        except FileNotFoundError:
            return Code(commit=None, dirty=None)
        return Code(commit=commit, dirty=state == "dirty")
    changes = _git(repository, "status", "--porcelain", "--untracked-files=normal", "--", ".", ":(exclude)results")
    return Code(commit=commit, dirty=None if changes is None else bool(changes))


def waited_seconds() -> float | None:
    """How long this thread has waited, since it started, for a core that others had; None where only guesses can be
    made (not Linux)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _os_name() -> str:
    """System and kernel version, without a vendor's build label."""
    version = re.match(r"[0-9]+(\.[0-9]+)*", platform.release())
    return f"{platform.system()} {version.group() if version else ''}".strip()


def _packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(repository: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (ValueError, OSError, AttributeError):
        return None


def _nccl() -> str | None:
    import torch

    try:
        return ".".join(str(part) for part in torch.cuda.nccl.version())
    except (AttributeError, RuntimeError):
        return None
