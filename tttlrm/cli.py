"""The ``tttlrm`` command."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import tttlrm
from tttlrm.attention import BACKENDS
from tttlrm.bundled import BUNDLED
from tttlrm.config import Schedule
from tttlrm.errors import UserError
from tttlrm.launch import RankError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_RECONSTRUCT = """Reconstruct a scene: posed images to 3D Gaussians.

SCENE is a folder with opencv_cameras.json and its images, or that file. Every 8th frame is held out as a test view
(unless the file lists target_frames), and the input views are chosen from the others (unless it lists them). The output
folder appears when all is done, and not at all if something fails. It holds:

  gaussians.ply     the Gaussians, in the layout of 3D Gaussian Splatting, in the normalised world
  renders/          each test view (left) beside its rendering (right)
  metrics.csv       PSNR, SSIM and LPIPS of each test view, and their means
  trajectory.mp4    a flight through the input cameras
  report.json       configuration, times and memory by stage, quality, environment
"""

_RENDER = """Render the test views of a scene from a PLY file that `tttlrm reconstruct` wrote.

Writes renders/, metrics.csv and report.json, as `tttlrm reconstruct` does.
"""

_DOCTOR = """Say what is installed, and what is missing for which feature.

Ends with status 1 when the main job (reconstructing, the suite's tables) cannot run here.
"""

_CONVERT = """Convert a capture of another program to a scene: undistorted images and their cameras.

SRC is, for

  dl3dv        a scene of DL3DV: transforms.json (perhaps in nerfstudio/) and images_4/
  nerfstudio   a folder with transforms.json, as ns-process-data makes it
  colmap       a project of COLMAP: sparse/0/ with cameras and images (.bin or .txt), and images/

Images of cameras with distortion are undistorted by OpenCV; the others are copied. Intrinsics are scaled to the images'
own sizes. A run that was interrupted goes on where it stopped; opencv_cameras.json appears when all is there.
"""

_DEMO = """Write a procedural scene to try everything on: an object, or a room, rendered exactly from posed cameras.

SCENE_DIR is then a scene as `tttlrm reconstruct` takes it. The bundled models were trained on such scenes, but on none
of these. Nothing is downloaded.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 failure, 2 wrong usage or input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    previous = _catch_termination()
    try:
        options.run(options)
    except UserError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {options.interrupted}", EXIT_INTERRUPTED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", EXIT_FAILURE)
    except RankError as error:
        return _fail(str(error), EXIT_FAILURE)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return EXIT_OK


def _run_reconstruct(options: argparse.Namespace) -> None:
    from tttlrm.outputs import check_output
    from tttlrm.plan import Settings, make_plan
    from tttlrm.progress import Bars
    from tttlrm.reconstruct import reconstruct

    settings = Settings(
        scene=options.scene,
        output=options.output,
        weights=options.weights,
        random_weights=options.random_weights,
        config=options.config,
        num_views=options.views,
        schedule=Schedule(options.schedule, options.views_per_chunk),
        sp_size=options.sp_size,
        size=options.size,
        seed=options.seed,
        dtype=DTYPES.get(options.dtype),
        device=options.device,
        attention_backend=options.attention_backend,
        prune=options.prune,
        lpips=options.lpips,
        video_frames=options.video_frames if options.video else 0,
        overwrite=options.overwrite,
    )
    check_output(settings.output, settings.overwrite)
    plan = make_plan(settings)
    progress = Bars()
    progress.note(plan.summary())
    if plan.origin.random_weights:
        progress.note("RANDOM WEIGHTS: the result shows that the command works, and says nothing about the model")
    reconstruct(plan)
    print(f"wrote {settings.output}")


def _run_render(options: argparse.Namespace) -> None:
    from tttlrm.progress import Bars
    from tttlrm.rerender import RenderSettings, render_ply

    settings = RenderSettings(
        options.ply, options.scene, options.output, options.size, options.device, options.lpips, options.overwrite
    )
    render_ply(settings, Bars())
    print(f"wrote {settings.output}")


def _run_doctor(options: argparse.Namespace) -> None:
    from tttlrm.doctor import can_run, examine, report

    findings = examine()
    print(report(findings))
    if not can_run(findings):
        raise SystemExit(EXIT_FAILURE)


def _run_demo(options: argparse.Namespace) -> None:
    from tttlrm.progress import Bars
    from tttlrm.scenes.demo import Demo, write_demo

    demo = Demo(options.kind, options.views, options.size, options.seed)
    print(f"wrote {write_demo(demo, options.folder, Bars())}")


def _run_convert(options: argparse.Namespace) -> None:
    from tttlrm.progress import Bars
    from tttlrm.scenes import convert

    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    readers = {"dl3dv": convert.read_dl3dv, "nerfstudio": convert.read_nerfstudio, "colmap": convert.read_colmap}
    capture = readers[options.kind](options.source, options.images)
    done = convert.convert(
        capture,
        options.destination,
        name=options.name,
        jobs=options.jobs,
        overwrite=options.overwrite,
        progress=Bars(),
    )
    kept = f", {done.kept} of them by an earlier run" if done.kept else ""
    print(f"wrote {done.scene_file}: {done.frames} frames{kept}, {done.undistorted} undistorted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tttlrm", description="3D Gaussians from posed images by test-time training.")
    parser.add_argument("--version", action="version", version=f"tttlrm {tttlrm.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_reconstruct(commands)
    _add_render(commands)
    _add_convert(commands)
    _add_download(commands)
    _add_demo(commands)
    _command(commands, "doctor", _DOCTOR, _run_doctor)
    return parser


def _add_reconstruct(commands: Any) -> None:
    parser = _command(commands, "reconstruct", _RECONSTRUCT, _run_reconstruct)
    parser.add_argument("scene", type=Path, metavar="SCENE", help="scene folder or its JSON file")
    _add_output(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint: .safetensors, or the published .pt; or the name of a bundled model: "
        f"{', '.join(BUNDLED)} (default: the bundled tttLRM that suits the scene)",
    )
    model.add_argument(
        "--random-weights",
        action="store_true",
        help="run without a checkpoint, to try the command; every output then says so",
    )
    model.add_argument(
        "--config",
        choices=("released", "tiny"),
        help="of random weights, or of a checkpoint without its own (default: released)",
    )
    model.add_argument("--seed", type=int, default=0, help="of random weights and of pruning (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--views", type=int, default=16, metavar="N", help="number of input views (default: 16)")
    run.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="resize images (default: their size, cut to patches; for bundled models, 128 pixels on the longer side)",
    )
    run.add_argument(
        "--schedule",
        choices=("full", "ar"),
        default="full",
        help="update the fast weights with all views at once, or chunk by chunk (default: full)",
    )
    run.add_argument("--views-per-chunk", type=int, default=4, metavar="N", help="of the ar schedule (default: 4)")
    run.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        help="drop the least opaque Gaussians as the paper does, or keep every one (default: drop, but for bundled "
        "models, which were not trained for it)",
    )
    compute = parser.add_argument_group("compute")
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    compute.add_argument(
        "--sp-size",
        type=int,
        default=1,
        metavar="N",
        help="spread the views over N local processes, with a GPU each on CUDA (default: 1)",
    )
    compute.add_argument(
        "--dtype", choices=sorted(DTYPES), help="of products and attention (default: bfloat16 on CUDA, else float32)"
    )
    compute.add_argument(
        "--attention-backend",
        default="auto",
        choices=BACKENDS,
        metavar="NAME",
        help=f"one of {', '.join(BACKENDS)} (default: auto)",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--no-video", dest="video", action="store_false", help="write no trajectory.mp4")
    results.add_argument("--video-frames", type=int, metavar="N", help="24 a second (default: 96 on CUDA, else 48)")
    _add_lpips(results)


def _add_render(commands: Any) -> None:
    parser = _command(commands, "render", _RENDER, _run_render)
    parser.add_argument("ply", type=Path, metavar="PLY", help="gaussians.ply of a reconstruction")
    parser.add_argument("scene", type=Path, metavar="SCENE", help="the scene that it was made from")
    _add_output(parser)
    parser.add_argument("--size", type=_size, metavar="HxW", help="of the images (default: as reconstructed)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    _add_lpips(parser)


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", _CONVERT, _run_convert)
    parser.set_defaults(interrupted="the same command goes on where this one stopped")
    parser.add_argument("kind", choices=("dl3dv", "nerfstudio", "colmap"), help="what SRC is")
    parser.add_argument("source", type=Path, metavar="SRC", help="the capture's folder")
    parser.add_argument("destination", type=Path, metavar="DST", help="new folder for the scene")
    parser.add_argument("--images", metavar="FOLDER", help="folder of images in SRC (default: as SRC has them)")
    parser.add_argument("--name", help="of the scene (default: that of DST)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion left in DST")


def _add_download(commands: Any) -> None:
    parser = commands.add_parser(
        "download", help="Fetch what others publish.", description="Fetch what others publish."
    )
    from tttlrm.downloads.commands import add_commands

    add_commands(parser.add_subparsers(title="what", required=True, metavar="WHAT"), _command)


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _DEMO, _run_demo)
    parser.add_argument("folder", type=Path, metavar="SCENE_DIR", help="new folder for the scene")
    parser.add_argument("--kind", choices=("object", "room"), default="object", help="(default: object)")
    parser.add_argument("--views", type=int, default=24, metavar="N", help="every 8th is a test view (default: 24)")
    parser.add_argument("--size", type=_size, default=(128, 128), metavar="HxW", help="images (default: 128x128)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives another scene (default: 0)")


def _command(commands: Any, name: str, description: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description.splitlines()[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, interrupted="nothing was written")
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="new folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it holds an earlier result of tttlrm")


def _add_lpips(parser: Any) -> None:
    parser.add_argument(
        "--no-lpips",
        dest="lpips",
        action="store_false",
        help="leave LPIPS out; it is slow on a CPU, and fetches weights (61 MiB) once",
    )


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH in pixels, such as 536x960, not {text!r}")
    return int(match[1]), int(match[2])


def _catch_termination() -> dict[int, Any]:
    """End on SIGTERM and SIGHUP as on an exception, so that temporary folders are removed; nohup stays in force.

    Returns:
        The handlers that were there before, by signal.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _terminate) for number in numbers}


def _terminate(signal_number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signal_number)


def _fail(message: str, status: int) -> int:
    print(f"tttlrm: error: {message}", file=sys.stderr)
    return status
