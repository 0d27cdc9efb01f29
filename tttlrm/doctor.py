"""What is installed here, and what is missing for which feature."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


PACKAGES = (
    Package("numpy", "numpy", "arrays"),
    Package("safetensors", "safetensors", "checkpoints"),
    Package("pillow", "PIL", "images"),
    Package("scikit-image", "skimage", "SSIM"),
    Package("scikit-learn", "sklearn", "choice of input views"),
    Package("plyfile", "plyfile", "PLY files"),
    Package("av", "av", "films"),
    Package("rich", "rich", "progress"),
    Package("hydra-core", "hydra", "the suite's configuration"),
    Package("pydantic", "pydantic", "the suite's records"),
    Package("submitit", "submitit", "jobs on SLURM"),
    Package("opencv-python-headless", "cv2", "tttlrm convert", needed=False),
    Package("huggingface_hub", "huggingface_hub", "tttlrm download", needed=False),
    Package("matplotlib", "matplotlib", "the suite's plots", needed=False, hint="pip install -e '.[plots]'"),
    Package("nvidia-ml-py", "pynvml", "clocks and power of GPUs", needed=False),
    Package("gsplat", "gsplat", "rendering on CUDA", needed=False, hint="pip install gsplat==1.5.3"),
    Package("xformers", "xformers", "an attention backend", needed=False, hint="pip install -e '.[xformers]'"),
    Package(
        "flash-attn",
        "flash_attn",
        "an attention backend",
        needed=False,
        hint="pip install --no-build-isolation flash-attn",
    ),
)


def examine() -> list[Finding]:
    """Everything that can be said without running a model."""
    return [
        _python(),
        *_torch(),
        *map(_package, PACKAGES),
        *_models(),
        _lpips(),
        _tool("sbatch", "cluster=slurm"),
        _tool("nvcc", "compiling gsplat, which needs it once"),
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


def _python() -> Finding:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", "broken", True, f"{version}; 3.11 or 3.12 is needed")
    return Finding("python", "ok", True, version)


def _torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "broken", True, f"cannot be imported ({error}); run make setup")]
    build = f"{torch.__version__} ({'CPU build' if torch.version.cuda is None else f'CUDA {torch.version.cuda} build'})"
    findings = [Finding("torch", "ok", True, build)]
    if torch.version.cuda is None:
        return [*findings, Finding("GPU", "absent", False, "not looked for: this torch is a CPU build")]
    if not torch.cuda.is_available():
        return [
            *findings,
            Finding("GPU", "absent", False, "torch finds no CUDA GPU (nvidia-smi shows the driver's view)"),
        ]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        detail = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, driver {_driver()}"
        findings.append(Finding(f"GPU {index}", "ok", False, detail))
    return findings


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # whatever it raises, the driver's version stays unknown
        return "unknown"


def _package(package: Package) -> Finding:
    """Not imported, which takes seconds for some: a module that is there is taken to work."""
    purpose = f"for {package.purpose}"
    if importlib.util.find_spec(package.module) is None:
        return Finding(package.distribution, "absent", package.needed, f"{purpose}: {package.hint}")
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return Finding(package.distribution, "ok", package.needed, f"{version}, {purpose}")


def _models() -> list[Finding]:
    from tttlrm.bundled import BUNDLED, bundled_model
    from tttlrm.errors import UserError

    findings = []
    for name in BUNDLED:
        try:
            bundled_model(name)
            findings.append(Finding(name, "ok", True, "bundled model"))
        except UserError as error:
            findings.append(Finding(name, "broken", True, str(error)))
    return findings


def _lpips() -> Finding:
    from tttlrm.lpips_weights import CACHE_FILE, default_cache_dir

    there = (default_cache_dir() / CACHE_FILE).is_file()
    detail = "in the user's cache" if there else "fetched when first needed (61 MiB); without them LPIPS stays empty"
    return Finding("LPIPS weights", "ok" if there else "absent", False, detail)


def _tool(name: str, purpose: str) -> Finding:
    there = shutil.which(name) is not None
    return Finding(name, "ok" if there else "absent", False, f"for {purpose}")
