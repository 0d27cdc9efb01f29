"""What is installed here, and what is missing for which feature.

Run as ``tttlrm doctor``, or as ``python -m tttlrm.doctor`` where not even PyTorch can be imported: this module needs
nothing but the standard library.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        needed: the main job (``tttlrm reconstruct``, the suite's tables) cannot run without it.
        detail: a version, or what is wrong and what to do.
    """

    name: str
    state: State
    needed: bool
    detail: str


@dataclass(frozen=True)
class Package:
    """A distribution, the module that it is imported as, and what it is for."""

    distribution: str
    module: str
    purpose: str
    needed: bool = True
    hint: str = "run make setup"


_FROM_LOCK = "pip install --no-deps --require-hashes -r requirements/locks"

GSPLAT = Package(
    "gsplat", "gsplat", "rendering on CUDA", needed=False, hint="make setup brings it with a CUDA build of torch"
)
PACKAGES = (
    Package("numpy", "numpy", "arrays"),
    Package("safetensors", "safetensors", "checkpoints"),
    Package("pillow", "PIL", "images"),
    Package("scipy", "scipy", "statistics and rotations"),
    Package("scikit-image", "skimage", "SSIM"),
    Package("scikit-learn", "sklearn", "choice of input views"),
    Package("plyfile", "plyfile", "PLY files"),
    Package("av", "av", "films"),
    Package("rich", "rich", "progress"),
    Package("hydra-core", "hydra", "the suite's configuration"),
    Package("omegaconf", "omegaconf", "the suite's configuration"),
    Package("pyyaml", "yaml", "the suite's configuration"),
    Package("pydantic", "pydantic", "the suite's records"),
    Package("jinja2", "jinja2", "the suite's tables"),
    Package("submitit", "submitit", "jobs on SLURM"),
    Package("opencv-python-headless", "cv2", "tttlrm convert", needed=False),
    Package("huggingface-hub", "huggingface_hub", "tttlrm download", needed=False),
    Package("nvidia-ml-py", "pynvml", "clocks and power of GPUs", needed=False),
    Package("matplotlib", "matplotlib", "the suite's plots", needed=False),
    Package("xformers", "xformers", "an attention backend", needed=False, hint=f"{_FROM_LOCK}/xformers.txt"),
    Package(
        "flash-attn",
        "flash_attn",
        "an attention backend",
        needed=False,
        hint=f"{_FROM_LOCK}/flash-attn.txt --no-build-isolation",
    ),
)


def examine() -> list[Finding]:
    """Everything that can be said without running a model."""
    torch_findings, has_gpu = _torch()
    return [
        _python(),
        *torch_findings,
        *(_package(package) for package in PACKAGES),
        *_gsplat(needed=has_gpu),
        *_models(),
        _lpips(),
        _tool("sbatch", "cluster=slurm"),
        _tool("colmap", "cameras of a capture of your own"),
    ]


def report(findings: Sequence[Finding]) -> str:
    """One line for each, and a last one that says whether the main job can run."""
    width = max(len(finding.name) for finding in findings)
    marks = {"ok": "ok    ", "absent": "absent", "broken": "BROKEN"}
    lines = [f"{marks[f.state]}  {f.name:<{width}}  {f.detail}" for f in findings]
    missing = [f.name for f in findings if f.needed and f.state != "ok"]
    verdict = f"the main job cannot run without {', '.join(missing)}" if missing else "the main job can run here"
    return "\n".join([*lines, "", verdict])


def can_run(findings: Sequence[Finding]) -> bool:
    return all(finding.state == "ok" for finding in findings if finding.needed)


def main() -> int:
    """Print the report; 1 when the main job cannot run here."""
    findings = examine()
    print(report(findings))
    return 0 if can_run(findings) else 1


def _python() -> Finding:
    version = f"{platform.python_version()}, {sys.executable}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", "broken", True, f"{version}: 3.11 or 3.12 is needed")
    return Finding("python", "ok", True, version)


def _torch() -> tuple[list[Finding], bool]:
    """PyTorch and the GPUs, and whether it can use one."""
    driver = _nvidia_driver()
    try:
        import torch
    except Exception as error:  # a library that it cannot load is an OSError, and there are others
        missing = Finding("torch", "broken", True, f"cannot be imported ({error}): run make setup")
        return [missing, _gpu_without_torch(driver, "torch cannot be imported")], False
    cuda = torch.version.cuda
    build = f"{torch.__version__} ({'CPU build' if cuda is None else f'CUDA {cuda} build'})"
    wrong = _outside_range("torch", torch.__version__)
    found = [Finding("torch", "broken" if wrong else "ok", True, build + wrong)]
    if cuda is None:
        return [*found, _gpu_without_torch(driver, "this torch is a CPU build: make setup TORCH=cuda")], False
    if not torch.cuda.is_available():
        reason = f"torch cannot use it: is the driver too old for CUDA {cuda}, or CUDA_VISIBLE_DEVICES empty?"
        return [*found, _gpu_without_torch(driver, reason)], False
    return [*found, *(_gpu(torch, index, driver) for index in range(torch.cuda.device_count()))], True


def _gpu(torch: Any, index: int, driver: str | None) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    detail = (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability "
        f"{properties.major}.{properties.minor}, driver {driver or 'unknown'}"
    )
    try:
        torch.ones(2, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:  # a build without kernels for this GPU, or one that is full
        return Finding(f"GPU {index}", "broken", True, f"{detail}: cannot compute ({str(error).splitlines()[0]})")
    return Finding(f"GPU {index}", "ok", True, detail)


def _gpu_without_torch(driver: str | None, reason: str) -> Finding:
    """The main job runs on the CPU then, so a GPU that is not used is worth a line and no more."""
    if driver is None:
        return Finding("GPU", "absent", False, "for the paper profile: nvidia-smi finds none here")
    return Finding("GPU", "broken", False, f"for the paper profile: there is one (driver {driver}), but {reason}")


def _nvidia_driver() -> str | None:
    """The driver's version; None where there is no driver, or no GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _package(package: Package) -> Finding:
    """Not imported, which takes seconds for some: a module that is there is taken to work."""
    purpose = f"for {package.purpose}"
    if importlib.util.find_spec(package.module) is None:
        return Finding(package.distribution, "absent", package.needed, f"{purpose}: {package.hint}")
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package.distribution, "ok", package.needed, f"of unknown version, {purpose}")
    wrong = _outside_range(package.distribution, version)
    return Finding(package.distribution, "broken" if wrong else "ok", package.needed, f"{version}, {purpose}{wrong}")


def _outside_range(distribution: str, version: str) -> str:
    """What is wrong with a version, by what this package declares that it needs; empty if nothing is."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        declared = importlib.metadata.requires("tttlrm-suite") or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return ""  # a source folder without the set-up
    for requirement in map(Requirement, declared):
        if canonicalize_name(requirement.name) == canonicalize_name(distribution):
            public = version.split("+")[0]  # +cpu and +cu130 are no part of a range
            if not requirement.specifier.contains(public, prereleases=True):
                return f"; {requirement.specifier} is needed: run make setup"
    return ""


def _gsplat(*, needed: bool) -> list[Finding]:
    """gsplat is the renderer on CUDA, and needs nvcc unless its kernels were compiled before."""
    spec = importlib.util.find_spec(GSPLAT.module)
    nvcc, purpose = _nvcc(), "for compiling gsplat, which needs it once"
    compiled = spec is not None and any(_has_kernels(Path(folder)) for folder in spec.submodule_search_locations or [])
    if nvcc is not None:
        compiler = Finding("nvcc", "ok", False, f"{nvcc}, {purpose}")
    elif compiled:
        compiler = Finding("nvcc", "absent", False, f"{purpose}: not here, where its kernels are compiled already")
    else:
        compiler = Finding("nvcc", "absent", needed, f"{purpose}: install the CUDA toolkit, or set CUDA_HOME")
    found = _package(GSPLAT)
    return [Finding(found.name, found.state, needed, found.detail), compiler]


def _has_kernels(package: Path) -> bool:
    """Whether gsplat's extension lies in the package, or where PyTorch keeps what it compiles (its default folder)."""
    kept = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    return any(package.glob("csrc*.so")) or any(kept.glob("**/gsplat_cuda/gsplat_cuda.so"))


def _nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))


def _models() -> list[Finding]:
    try:
        from tttlrm.bundled import BUNDLED, bundled_model
        from tttlrm.errors import UserError
    except ImportError as error:
        return [Finding("bundled models", "broken", True, f"cannot be read ({error}): run make setup")]
    findings = []
    for name in BUNDLED:
        try:
            bundled_model(name)
            findings.append(Finding(name, "ok", True, "bundled model"))
        except UserError as error:
            findings.append(Finding(name, "broken", True, str(error)))
    return findings


def _lpips() -> Finding:
    try:
        from tttlrm.lpips_weights import CACHE_FILE, default_cache_dir
    except ImportError as error:
        return Finding("LPIPS weights", "broken", False, f"not looked for ({error})")
    there = (default_cache_dir() / CACHE_FILE).is_file()
    detail = "in the user's cache" if there else "fetched when first needed (61 MiB); without them LPIPS stays empty"
    return Finding("LPIPS weights", "ok" if there else "absent", False, detail)


def _tool(name: str, purpose: str) -> Finding:
    there = shutil.which(name) is not None
    return Finding(name, "ok" if there else "absent", False, f"for {purpose}")


if __name__ == "__main__":
    sys.exit(main())
