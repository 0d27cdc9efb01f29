"""What a run ran on. No user, host or folder names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

import tttlrm

_PACKAGES = ("numpy", "safetensors", "gsplat", "xformers", "flash-attn", "pillow", "scikit-learn", "av", "plyfile")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, JSON-able; what is not installed or not there is None."""
    described: dict[str, Any] = {
        "tttlrm": tttlrm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [],
    }
    if device.type == "cuda":
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        described["gpus"] = [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in properties]
    return described


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
