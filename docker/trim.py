"""Leave out of the image's environment what never runs there, and keep bytecode of what does.

    python trim.py ENVIRONMENT VARIANT

Left out: tests and sources of packages, programs and headers for building, and in the cpu variant C++ headers and the
symbols of libraries, which only debuggers read. Bytecode is kept of what the suite and the model import: without it
each start would compile that again.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

# numpy.testing and torch.testing stay: other packages import them.
PACKAGES_WITH_TESTS = ("matplotlib", "mpl_toolkits", "networkx", "numpy", "scipy", "skimage", "sklearn", "sympy")
SOURCES = ("*.a", "*.c", "*.pyx")
PROGRAMS, KEPT_PROGRAM = "torch/bin", "torch_shm_manager"
# For compiling extensions and models, which the cpu variant cannot do: it has no compiler.
HEADERS = "torch/include"
# What some modules need, and a machine without a GPU has not.
OPTIONAL = ("flash_attn", "gsplat", "triton", "xformers")
# Imported by functions, and so not by importing the packages.
LAZY = (
    "av",
    "cv2",
    "huggingface_hub",
    "hydra",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "plyfile",
    "rich.progress",
    "scipy.spatial.transform",
    "scipy.stats",
    "skimage.metrics",
    "sklearn.cluster",
    "submitit.core._submit",
    "submitit.helpers",
    "torch.distributed",
    "torch.utils.checkpoint",
)

_LOAD = """
import contextlib, ctypes, os, sys, torch
for path in sys.argv[1:]:
    with contextlib.suppress(OSError):
        ctypes.CDLL(path)
        print(path, flush=True)
os._exit(0)  # extensions that are loaded and not imported do not survive the interpreter's own end
"""


def main() -> None:
    environment, variant = Path(sys.argv[1]), sys.argv[2]
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    remove(packages / "torch/test")
    for name in PACKAGES_WITH_TESTS:
        remove(*(path for path in (packages / name).rglob("tests") if path.is_dir()))
    remove(*(path for pattern in SOURCES for path in packages.rglob(pattern)))
    remove(*(path for path in (packages / PROGRAMS).iterdir() if path.name != KEPT_PROGRAM))
    remove(*environment.rglob("__pycache__"))
    if variant == "cpu":
        remove(packages / HEADERS)
        # Those of the folders *.libs were rewritten after linking, and hold hardly any symbols.
        libraries = [path for path in packages.glob("[!.]*/**/*.so*") if path.is_file() and not path.is_symlink()]
        strip([path for path in libraries if not path.relative_to(packages).parts[0].endswith(".libs")])
    import_everything()


def remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have lain in one that is gone


def strip(libraries: Sequence[Path]) -> None:
    """What could be loaded before must be loaded after: not every library that was rewritten survives it."""
    before = loadable(libraries)
    subprocess.run(["strip", "--strip-unneeded", *map(str, libraries)], check=True)
    broken = before - loadable(libraries)
    if broken:
        raise SystemExit(f"strip broke {', '.join(sorted(broken))}")


def loadable(libraries: Sequence[Path]) -> set[str]:
    command = [sys.executable, "-c", _LOAD, *map(str, libraries)]
    return set(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())


def import_everything() -> None:
    """Writes the bytecode, as none is left. What does not import without what was left out ends the build here."""
    for name in ("tttlrm", "bench"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] not in OPTIONAL:
                    raise
    for name in LAZY:
        importlib.import_module(name)


if __name__ == "__main__":
    main()
