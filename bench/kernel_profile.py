"""The kernels of one reconstruction on a CUDA GPU, by the time that they take, as text.

    python -m bench.kernel_profile --views 32 -o results/<version>/<machine>/profile.txt

Random weights and random images of the released model's size: time does not depend on what they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tttlrm.accelerated import AcceleratedModel, accelerate
from tttlrm.attention import BACKENDS
from tttlrm.cameras import Views
from tttlrm.config import Compute, ModelConfig, Schedule
from tttlrm.errors import UserError
from tttlrm.files import write_text
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM

_NAME_WIDTH = 64


@dataclass(frozen=True)
class Kernel:
    """seconds: of all calls together."""

    name: str
    calls: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    return print_measured(profile_text, _parser().parse_args(arguments))


def print_measured(measure: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Print what ``measure`` finds on the GPU, and write it to ``options.output``; the exit status of the command."""
    try:
        if not torch.cuda.is_available():
            raise UserError("no CUDA GPU on this machine")
        text = measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    if options.output is not None:
        write_text(options.output, text + "\n")
    return 0


def profile_text(options: argparse.Namespace) -> str:
    """One run is profiled, after one that compiles and allocates."""
    height, width = options.size
    schedule = Schedule(kind=options.schedule)
    compute = Compute(dtype=torch.bfloat16, attention_backend=options.attention)
    model = random_model(compute, plain=options.plain)
    views = random_views(options.views, height, width)

    @torch.no_grad()
    def run() -> Gaussians:
        return model(views, schedule, compute)

    kernels, seconds = profile(run)
    peak = torch.cuda.max_memory_allocated() / 2**30
    kind = "accelerated" if isinstance(model, AcceleratedModel) else "plain"
    title = (
        f"{kind} model, {options.schedule} schedule, {options.views} views of {height}x{width}, bfloat16, attention "
        f"{options.attention}, {torch.cuda.get_device_name()}, torch {torch.__version__}"
    )
    return f"{title}\n{kernel_table(kernels, seconds)}\npeak memory, model and images included: {peak:.2f} GiB"


def profile(run: Callable[[], object]) -> tuple[list[Kernel], float]:
    """The kernels of a run, the longest first, and the run's wall time without the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    with torch_profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    kernels = [Kernel(event.key, event.count, event.self_device_time_total / 1e6) for event in events]
    return sorted(kernels, key=lambda kernel: -kernel.seconds), seconds


def kernel_table(kernels: Sequence[Kernel], seconds: float, least: float = 1e-3) -> str:
    """Kernels that take at least a share ``least`` of the sum, and the rest together."""
    total = sum(kernel.seconds for kernel in kernels)
    shown = [kernel for kernel in kernels if kernel.seconds >= least * total]
    rest = [kernel for kernel in kernels if kernel.seconds < least * total]
    lines = [f"{'kernel':{_NAME_WIDTH}} {'calls':>6} {'ms':>9} {'share':>6}"]
    for kernel in [*shown, Kernel(f"{len(rest)} others", sum(k.calls for k in rest), sum(k.seconds for k in rest))]:
        name = kernel.name if len(kernel.name) <= _NAME_WIDTH else kernel.name[: _NAME_WIDTH - 3] + "..."
        share = kernel.seconds / total if total else 0.0
        lines.append(f"{name:{_NAME_WIDTH}} {kernel.calls:6d} {1e3 * kernel.seconds:9.2f} {share:6.1%}")
    lines.append(f"{'all kernels':{_NAME_WIDTH}} {sum(k.calls for k in kernels):6d} {1e3 * total:9.2f}")
    lines.append(f"{'wall time of a run without the profiler':{_NAME_WIDTH}} {'':6} {1e3 * seconds:9.2f}")
    return "\n".join(lines)


def random_views(count: int, height: int, width: int) -> Views:
    """Random images from cameras that look in random directions, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))[0]
    poses[:, :3, 3] = 2 * torch.rand(count, 3, generator=generator) - 1
    focal = 0.8 * width
    intrinsics = torch.tensor([[focal, focal, width / 2, height / 2]]).repeat(count, 1)
    return Views(torch.rand(count, 3, height, width, generator=generator), poses, intrinsics).to("cuda")


def random_model(compute: Compute, plain: bool) -> TTTLRM | AcceleratedModel:
    """The released architecture with random weights, on the GPU; ``plain``: without its acceleration."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = TTTLRM(ModelConfig()).eval().requires_grad_(False)
    return model if plain else accelerate(model, compute)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.kernel_profile", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--views", type=int, default=32, help="input views (default 32)")
    parser.add_argument("--size", type=int, nargs=2, default=(536, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--schedule", choices=("full", "ar"), default="full")
    parser.add_argument("--attention", choices=BACKENDS, default="auto", help="attention kernel (default auto)")
    parser.add_argument("--plain", action="store_true", help="the model without its acceleration")
    parser.add_argument("-o", "--output", type=Path, help="write the text to this file as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
