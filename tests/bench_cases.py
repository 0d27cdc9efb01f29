"""Cells, records and plans that the tests of the suite share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.environment import Code, Environment, Gpu
from bench.planning import Planned, plan_table
from bench.records import Phase, QualityResult, RankMemory, Record, SceneQuality, SpeedResult, ViewQuality
from bench.settings import load_settings

MACHINE = "test-machine"
WHEN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def tiny_plan(*overrides: str) -> Planned:
    return plan_table(load_settings([f"machine={MACHINE}", *overrides]))


def environment(gpu: str | None = None) -> Environment:
    return Environment(
        code=Code(commit="0123456789abcdef0123456789abcdef01234567", dirty=False),
        python="3.11.7",
        packages={"torch": "2.13.0"},
        os="Linux 6.1",
        cpu="A CPU",
        cpu_cores=2,
        memory_mib=16000,
        threads=1,
        gpus=(Gpu(name=gpu, memory_mib=80000),) if gpu else (),
        cuda="13.0" if gpu else None,
        cudnn=None,
        nccl=None,
        host="0123456789ab",
        job=None,
        image=None,
    )


def quality_result(by_scene: dict[str, Sequence[float]], lpips: float | None = 0.2) -> QualityResult:
    """Scenes with the given PSNR of each test view; SSIM and LPIPS the same everywhere."""
    scenes = tuple(
        SceneQuality(
            scene=name,
            views=tuple(ViewQuality(view=at, psnr=value, ssim=0.9, lpips=lpips) for at, value in enumerate(values)),
            gaussians=100,
            rendered_gaussians=46,
            usage=1.0,
            seconds=0.5,
        )
        for name, values in by_scene.items()
    )
    return QualityResult(scenes=scenes, lpips_absent=None if lpips is not None else "no network")


def speed_result(times: Sequence[float], waited_share: float | None = 0.0) -> SpeedResult:
    """A reconstruction whose stages encode, blocks and decode share each time 1:2:1."""
    shares = {"encode": 0.25, "blocks": 0.5, "decode": 0.25}
    stages = {stage: tuple((share * value,) for value in times) for stage, share in shares.items()}

    def phase(of: dict[str, tuple[tuple[float, ...], ...]]) -> Phase:
        return Phase(
            stages=of,
            first_call={stage: 1.0 for stage in of},
            warmup_calls=3,
            warmup_s=0.3,
            stopped="interval",
            waited_share=waited_share,
        )

    show = phase({"prune": ((0.001,),) * 8, "render": ((0.02,),) * 8})
    return SpeedResult(reconstruct=phase(stages), show=show, read_s=None, gaussians=100, rendered_views=8)


def record(cell: Cell, **changes: Any) -> Record:
    """An ok record of the cell, unless the changes say otherwise; not sealed."""
    values: dict[str, Any] = {
        "table": "table1",
        "cell_id": cell.id,
        "cell": cell,
        "status": "ok",
        "reason": None,
        "attempt": 1,
        "started": WHEN,
        "finished": WHEN,
        "job": "job",
        "memory": (RankMemory(rank=0, resident_mib=300.0, resident_growth_mib=40.0),),
        "environment": environment(),
    }
    if cell.kind == "quality":
        values["quality"] = quality_result({"0": [20.0, 21.0], "1": [22.0, 23.0], "2": [24.0, 23.0]})
    else:
        values["speed"] = speed_result([0.01 * (1 + 0.001 * at) for at in range(20)])
    if changes.get("status", "ok") != "ok":
        values.update(quality=None, speed=None)
    return Record(**{**values, **changes})


def folder_scene(folder: Path, frames: int = 12, size: int = 32) -> None:
    """A scene folder: a ring of cameras around a few known Gaussians, rendered."""
    import json

    import torch
    from PIL import Image

    from tttlrm.cameras import Cameras
    from tttlrm.gaussians import Gaussians
    from tttlrm.rendering import render

    generator = torch.Generator().manual_seed(0)
    gaussians = Gaussians(
        positions=torch.rand(40, 3, generator=generator) - 0.5,
        sh=torch.rand(40, 1, 3, generator=generator) * 2 - 1,
        log_scales=torch.full((40, 3), -2.5),
        quaternions=torch.tensor([1.0, 0, 0, 0]).expand(40, 4),
        opacity_logits=torch.full((40,), 3.0),
    )
    angles = torch.arange(frames) / frames * 2 * torch.pi
    poses = torch.eye(4).repeat(frames, 1, 1)
    forward = torch.stack([-angles.sin(), torch.zeros(frames), -angles.cos()], dim=1)
    down = torch.tensor([0.0, 1.0, 0.0]).expand(frames, 3)
    poses[:, :3, 0] = torch.linalg.cross(down, forward)
    poses[:, :3, 1], poses[:, :3, 2], poses[:, :3, 3] = down, forward, -2.5 * forward
    intrinsics = torch.tensor([1.1 * size, 1.1 * size, size / 2, size / 2]).expand(frames, 4)
    images = render(gaussians, Cameras(poses, intrinsics, size, size)).images.clamp(0, 1)
    folder.mkdir(parents=True)
    entries = []
    for at in range(frames):
        pixels = (images[at].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{at:03d}.png")
        fx, fy, cx, cy = intrinsics[at].tolist()
        world_to_camera = torch.linalg.inv(poses[at].double()).tolist()
        entry = {"file_path": f"{at:03d}.png", "w": size, "h": size, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
        entries.append({**entry, "w2c": world_to_camera})
    (folder / "opencv_cameras.json").write_text(json.dumps({"scene_name": folder.name, "frames": entries}))
