"""Procedural scenes on CUDA: the same pictures as on the CPU, and fast enough that training never waits for them."""

from __future__ import annotations

import time

import pytest
import torch

from tttlrm.scenes.procedural import (
    ProceduralRendering,
    ProceduralSpec,
    make_batch,
    render_scenes,
    sample_cameras,
    scene_parameters,
)

pytestmark = pytest.mark.gpu

SPECS = [ProceduralSpec("object"), ProceduralSpec("room")]


def images_per_second(
    spec: ProceduralSpec, *, scenes: int = 128, views: int = 16, side: int = 128, seconds: float = 5.0
) -> tuple[float, float, float]:
    """How fast CUDA renders, compiled, in blocks as large as training's.

    Returns:
        images a second of rendering alone, images a second with scenes drawn on the CPU, and the seconds of the first
        call (compilation).
    """
    torch.cuda.synchronize()
    start = time.perf_counter()
    make_batch(spec, range(scenes), views, (side, side), "cuda", compile=True)
    torch.cuda.synchronize()
    first = time.perf_counter() - start

    parameters = scene_parameters(spec, range(scenes))
    cameras = sample_cameras(parameters, views, (side, side)).to("cuda")
    parameters = parameters.to("cuda")

    def rate(draw: bool) -> float:
        begin, rounds = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            if draw:
                indices = range(rounds * scenes, (rounds + 1) * scenes)
                make_batch(spec, indices, views, (side, side), "cuda", compile=True)
            else:
                render_scenes(parameters, cameras, compile=True)
            torch.cuda.synchronize()
            rounds += 1
        return rounds * scenes * views / (time.perf_counter() - begin)

    rate(draw=False)  # warm up
    return rate(draw=False), rate(draw=True), first


@pytest.mark.timing
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_at_least_2000_images_of_128x128_a_second(spec: ProceduralSpec, capsys: pytest.CaptureFixture[str]) -> None:
    rendered, drawn, first = images_per_second(spec)
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()}, {spec.kind}: {rendered:.0f} images/s rendered, {drawn:.0f} drawn and "
            f"rendered; first call {first:.0f} s; peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )
    assert rendered >= 2000
    assert drawn >= 2000


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_pictures_are_those_of_the_cpu(spec: ProceduralSpec, compile: bool) -> None:
    scenes = scene_parameters(spec, range(8))
    cameras = sample_cameras(scenes, 2, (32, 32))
    expected = render_scenes(scenes, cameras)
    measured = render_scenes(scenes.to("cuda"), cameras.to("cuda"), compile=compile)
    assert_same_but_for_rounding(measured, expected)


def test_precision_of_matrix_products_does_not_matter() -> None:
    """Training may allow TF32; geometry must not round with it."""
    scenes = scene_parameters(SPECS[0], range(8))
    cameras = sample_cameras(scenes, 2, (32, 32))
    expected = render_scenes(scenes, cameras)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cuda", torch.bfloat16):
            measured = render_scenes(scenes.to("cuda"), cameras.to("cuda"))
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same_but_for_rounding(measured, expected)


def assert_same_but_for_rounding(measured: ProceduralRendering, expected: ProceduralRendering) -> None:
    """Equal, except in the few pixels where a sample falls on the other side of an edge."""
    images = (measured.images.cpu() - expected.images).abs()
    assert measured.images.dtype == torch.float32
    assert float(images.mean()) < 1e-4
    assert float((images > 1e-3).double().mean()) < 5e-3
    depths = (measured.depths.cpu() - expected.depths).abs()
    assert float((depths > 1e-4).double().mean()) < 5e-3
    assert float((measured.masks.cpu() != expected.masks).double().mean()) < 2e-3
