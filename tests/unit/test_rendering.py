"""The renderer in torch: against reference files, against a plain loop over pixels, and in unusual scenes."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.rendering_cases import (
    GOLDEN_RENDERINGS,
    IMAGES,
    check_case,
    load_render_case,
    orbit,
    random_gaussians,
    relative_error,
)
from tttlrm.cameras import Cameras
from tttlrm.errors import BackendUnavailableError, UserError
from tttlrm.gaussians import Gaussians
from tttlrm.rendering import EPS2D, Rendering, compositing, gsplat_backend, reference, render
from tttlrm.rendering.footprints import find_footprints
from tttlrm.rendering.projection import Frustum, principal_axes, project
from tttlrm.rendering.spherical_harmonics import sh_basis, sh_colors

DOUBLE = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", GOLDEN_RENDERINGS)
def test_equal_to_reference(name: str, dtype: torch.dtype) -> None:
    check_case(load_render_case(name, dtype), reference.rasterize)


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.2, 0.0, 0.7)])
@pytest.mark.parametrize("name", GOLDEN_RENDERINGS)
def test_render_composites_over_the_background(name: str, background: tuple[float, ...]) -> None:
    case = load_render_case(name)
    found = render(case.gaussians, case.cameras, background=background, near=case.near, far=case.far)
    alpha = case.tensors["out/alpha"]
    image = case.tensors["out/rgb_no_background"] + (1 - alpha) * torch.tensor(background)
    assert relative_error(found.images, image.movedim(-1, -3)) < IMAGES
    assert relative_error(found.alphas, alpha.movedim(-1, -3)) < IMAGES
    assert relative_error(found.depths, case.tensors["out/depth_accumulated"].movedim(-1, -3)) < IMAGES


def plain_loop(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[H, W, 5] of one view: every Gaussian at every pixel, one after the other. No bounds, no groups."""
    viewmat, intrinsics = cameras.world_to_camera[0], cameras.intrinsics[0]
    frustum = Frustum(cameras.width, cameras.height, 0.1, 1e10, EPS2D)
    axes = principal_axes(gaussians.quaternions, gaussians.log_scales.exp())
    flat = project(gaussians.positions, axes, viewmat, intrinsics, frustum)
    directions = torch.nn.functional.normalize(gaussians.positions - cameras.camera_to_world[0, :3, 3], dim=-1)
    colors = sh_colors(gaussians.sh, directions)
    rows, columns = (torch.arange(size, dtype=DOUBLE) + 0.5 for size in (cameras.height, cameras.width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    image, transmittance = torch.zeros(*y.shape, 5, dtype=DOUBLE), torch.ones_like(y)
    full = torch.zeros_like(y, dtype=torch.bool)
    for i in torch.sort(flat.depths, stable=True).indices.tolist():
        if not flat.in_range[i]:
            continue
        offset = torch.stack([flat.means[i, 0] - x, flat.means[i, 1] - y], dim=-1)
        xx, xy, yy = flat.covariances[i].tolist()
        inverse = torch.linalg.inv(torch.tensor([[xx, xy], [xy, yy]], dtype=DOUBLE))
        distance = torch.einsum("hwi,ij,hwj->hw", offset, inverse, offset)
        alpha = (gaussians.opacities[i] * torch.exp(-0.5 * distance)).clamp(max=0.999)
        drawn = (alpha >= 1 / 255) & ~full
        full |= drawn & (transmittance * (1 - alpha) <= 1e-4)
        weight = torch.where(drawn & ~full, alpha * transmittance, 0)
        image += weight[..., None] * torch.cat([colors[i], flat.depths[i, None], torch.ones(1, dtype=DOUBLE)])
        transmittance = transmittance - weight
    return image


@pytest.mark.parametrize(
    ("count", "size", "logit"), [(300, 0.02, 0.0), (300, 0.2, 2.0), (60, 1.0, -1.0), (200, 0.3, -4.5), (80, 1.5, 6.0)]
)
def test_equal_to_a_plain_loop(count: int, size: float, logit: float) -> None:
    """Dots, screen-filling sheets and needles, partly outside the image, faint to opaque: no pixel is cut off."""
    gaussians = random_gaussians(count, seed=count, size=size).to(DOUBLE)
    gaussians = dataclasses.replace(gaussians, opacity_logits=gaussians.opacity_logits + logit)
    cameras = orbit(1, 21, 34, distance=2.5)
    expected = plain_loop(gaussians, cameras)
    found = render(gaussians, cameras, background=(0, 0, 0))
    stacked = torch.cat([found.images, found.depths, found.alphas], dim=-3)[0].movedim(-3, -1)
    assert float((stacked - expected).abs().max()) < 1e-8
    assert float(expected[..., 4].max()) > 0.02


def test_one_gaussian_in_closed_form() -> None:
    focal, depth, deviation, opacity = 50.0, 2.0, 0.1, 0.6
    gaussians = Gaussians(
        positions=torch.tensor([[0.0, 0.0, depth]]),
        sh=torch.tensor([[[0.5, 0.1, -3.0]]]),
        log_scales=torch.full((1, 3), math.log(deviation)),
        quaternions=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        opacity_logits=torch.logit(torch.tensor([opacity])),
    ).to(DOUBLE)
    camera = Cameras(torch.eye(4)[None], torch.tensor([[focal, focal, 8.0, 6.0]]), 12, 16)
    found = render(gaussians, camera)

    y, x = torch.meshgrid(torch.arange(12) - 5.5, torch.arange(16) - 7.5, indexing="ij")
    variance = (focal / depth * deviation) ** 2 + 0.3
    alpha = opacity * torch.exp(-(x**2 + y**2).double() / (2 * variance))
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    color = (torch.tensor([0.5, 0.1, -3.0], dtype=DOUBLE) / math.sqrt(4 * math.pi) + 0.5).clamp_min(0)
    torch.testing.assert_close(found.alphas[0, 0], alpha, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.depths, depth * found.alphas, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.images[0], alpha * color[:, None, None] + 1 - alpha, rtol=1e-6, atol=0)


def test_alpha_at_its_limit_has_no_gradient() -> None:
    gaussians = dataclasses.replace(
        random_gaussians(1, seed=2, size=0.5),
        positions=torch.zeros(1, 3, requires_grad=True),
        opacity_logits=torch.tensor([9.0], requires_grad=True),
    )
    camera = dataclasses.replace(orbit(1, 1, 1), intrinsics=torch.tensor([[1.0, 1.0, 0.49, 0.5]]))
    alphas = render(gaussians, camera).alphas
    assert alphas.item() == pytest.approx(0.999)
    assert not any(t.any() for t in torch.autograd.grad(alphas, [gaussians.positions, gaussians.opacity_logits]))


def test_gradients_by_differences() -> None:
    gaussians = random_gaussians(12, seed=3, size=0.3, sh_degree=1).to(DOUBLE)
    cameras = orbit(2, 7, 9)

    def images(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = render(Gaussians(*tensors), cameras)
        return found.images, found.alphas, found.depths

    tensors = [t.requires_grad_() for t in gaussians.tensors]
    assert torch.autograd.gradcheck(images, tensors, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("budget", [1, 2000])
def test_group_size_does_not_matter(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, cameras = random_gaussians(60, seed=5, size=0.4).to(DOUBLE), orbit(1, 24, 20)
    expected, expected_gradients = _with_gradients(gaussians, cameras)
    monkeypatch.setattr(compositing, "GROUP_PIXELS", budget)
    found, gradients = _with_gradients(gaussians, cameras)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-10)


def test_groups_bound_the_work() -> None:
    gaussians, camera = random_gaussians(400, seed=6, size=0.5), orbit(1, 40, 50)
    axes = principal_axes(gaussians.quaternions, gaussians.log_scales.exp())
    viewmat, intrinsics = camera.world_to_camera[0].float(), camera.intrinsics[0].float()
    flat = project(gaussians.positions, axes, viewmat, intrinsics, Frustum(50, 40, 0.1, 1e10, EPS2D))
    footprints = find_footprints(flat, gaussians.opacities, 50, 40)
    groups = list(footprints.groups(5000))
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(footprints.gaussians)))
    sizes = [(runs.end - runs.start).sum() for runs in map(footprints.runs, groups)]
    assert len(groups) > 10
    assert 2500 < max(sizes) <= 5000
    assert all(group.stop == group.start + 1 for group in footprints.groups(1))


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_gaussians_does_not_matter(seed: int) -> None:
    gaussians, cameras = random_gaussians(500, seed), orbit(2, 32, 40)
    permutation = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
    expected, expected_gradients = _with_gradients(gaussians, cameras)
    found, gradients = _with_gradients(gaussians.select(permutation), cameras)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected_gradient[permutation]) < 1e-4


def test_equal_depths_keep_their_order() -> None:
    one = random_gaussians(1, seed=0, size=0.5, sh_degree=0)
    red, blue = torch.tensor([[[2.0, -2.0, -2.0]]]), torch.tensor([[[-2.0, -2.0, 2.0]]])
    for colors in ((red, blue), (blue, red)):
        both = Gaussians(*(torch.cat([t, t]) for t in one.tensors))
        both = dataclasses.replace(both, sh=torch.cat(colors), opacity_logits=torch.full((2,), 4.0))
        image = render(both, orbit(1, 16, 16)).images[0]
        middle = image.flatten(1)[:, render(both, orbit(1, 16, 16)).alphas.argmax()]
        assert bool(middle[0] > middle[2]) == (colors[0] is red)


def test_batch_equals_loop() -> None:
    gaussians = random_gaussians(200, seed=8, batch=(3,))
    scenes = [orbit(2, 24, 32, turn=turn) for turn in (0.0, 0.3, 1.0)]
    cameras = Cameras(
        torch.stack([scene.camera_to_world for scene in scenes]),
        torch.stack([scene.intrinsics for scene in scenes]),
        24,
        32,
    )
    found, gradients = _with_gradients(gaussians, cameras)
    assert found[0].shape == (3, 2, 3, 24, 32)
    for index, scene in enumerate(scenes):
        expected, expected_gradients = _with_gradients(gaussians.scene(index), scene)
        torch.testing.assert_close([t[index] for t in found], list(expected), rtol=1e-5, atol=1e-5)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            assert relative_error(gradient[index], expected_gradient) < 1e-5


def test_views_are_independent() -> None:
    gaussians, cameras = random_gaussians(200, seed=9), orbit(3, 24, 32)
    together = render(gaussians, cameras)
    for view in range(3):
        alone = render(gaussians, cameras.select([view]))
        assert alone.images.shape == (1, 3, 24, 32)
        torch.testing.assert_close(alone.images, together.images[view : view + 1], rtol=0, atol=0)
    assert render(gaussians, _no_views(cameras)).images.shape == (0, 3, 24, 32)


def test_length_of_quaternions_does_not_matter() -> None:
    gaussians, cameras = random_gaussians(200, seed=10).to(DOUBLE), orbit(1, 24, 32)
    scaled = dataclasses.replace(gaussians, quaternions=gaussians.quaternions * -7)
    torch.testing.assert_close(render(scaled, cameras).images, render(gaussians, cameras).images)


def test_precision_is_that_of_the_gaussians() -> None:
    gaussians, cameras = random_gaussians(300, seed=11), orbit(1, 24, 32)
    single, double = render(gaussians, cameras), render(gaussians.to(DOUBLE), cameras.to(torch.float32))
    assert single.images.dtype == torch.float32
    assert double.images.dtype == DOUBLE
    assert relative_error(single.images, double.images) < 1e-5


def test_autocast_does_not_reach_the_renderer() -> None:
    gaussians, cameras = random_gaussians(300, seed=12), orbit(1, 24, 32)
    expected = render(gaussians, cameras).images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(render(gaussians, cameras).images, expected, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["none", "behind", "beyond", "aside", "transparent"])
def test_nothing_to_see(what: str) -> None:
    gaussians = random_gaussians(0 if what == "none" else 50, seed=13)
    shift = {"behind": [0.0, 0.0, -9.0], "aside": [500.0, 0.0, 0.0]}.get(what, [0.0, 0.0, 0.0])
    gaussians = dataclasses.replace(
        gaussians,
        positions=(gaussians.positions + torch.tensor(shift)).requires_grad_(),
        opacity_logits=gaussians.opacity_logits - (20 if what == "transparent" else 0),
    )
    found = render(gaussians, orbit(1, 16, 24), background=(0.25, 0.5, 1.0), far=1.0 if what == "beyond" else 1e10)
    expected = torch.tensor([0.25, 0.5, 1.0])[:, None, None].expand(1, 3, 16, 24)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=0)
    assert not found.alphas.any()
    assert not found.depths.any()
    (gradient,) = torch.autograd.grad(found.images.sum() + found.depths.sum(), gaussians.positions)
    assert not gradient.any()


def test_near_and_far_bound_camera_z() -> None:
    gaussians, cameras = random_gaussians(300, seed=14), orbit(1, 24, 32).select([0])
    z = gaussians.positions[:, 2] + 4
    between = (z >= 3.5) & (z <= 4.5)
    assert 50 < int(between.sum()) < 250
    bounded = render(gaussians, cameras, near=3.5, far=4.5)
    torch.testing.assert_close(bounded.images, render(gaussians.select(between), cameras).images)


def test_gaussians_on_the_camera_have_finite_gradients() -> None:
    """At the camera's centre and on its plane, projection divides by zero; nothing of it may leak into a gradient."""
    gaussians, cameras = random_gaussians(60, seed=15), orbit(1, 16, 24)
    positions = gaussians.positions.clone()
    positions[0] = torch.tensor([0.0, 0.0, -4.0])
    positions[1] = torch.tensor([1.0, 0.0, -4.0])
    _, gradients = _with_gradients(dataclasses.replace(gaussians, positions=positions), cameras)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert not gradients[0][:2].any()


@pytest.mark.parametrize(("field", "value"), [(0, math.nan), (0, math.inf), (2, 99.0), (3, math.nan), (4, math.nan)])
def test_gaussians_that_are_not_finite_are_not_drawn(field: int, value: float) -> None:
    gaussians, cameras = random_gaussians(60, seed=16), orbit(1, 16, 24)
    tensors = [t.clone() for t in gaussians.tensors]
    tensors[field][::2] = value
    expected = render(gaussians.select(torch.arange(1, 60, 2)), cameras).images
    torch.testing.assert_close(render(Gaussians(*tensors), cameras).images, expected)


def test_opaque_pixels_stop() -> None:
    """Behind 50 opaque layers nothing shows, and no pixel's transmittance reaches 1e-4."""
    wall = random_gaussians(50, seed=17, sh_degree=0)
    depth = torch.linspace(-0.5, 0.5, 50)
    wall = dataclasses.replace(
        wall,
        positions=torch.stack([torch.zeros(50), torch.zeros(50), depth], dim=-1),
        log_scales=torch.full((50, 3), math.log(3.0)),
        opacity_logits=torch.full((50,), 3.0),
        sh=wall.sh.requires_grad_(),
    )
    found = render(wall, orbit(1, 16, 16))
    (gradient,) = torch.autograd.grad(found.images.sum(), wall.sh)
    assert float(found.alphas.detach().min()) > 0.999
    assert float(found.alphas.detach().max()) < 1 - 1e-4 + 1e-6
    assert bool(gradient[0].any())
    assert not gradient[20:].any()


def test_spherical_harmonics_are_orthonormal() -> None:
    """Integrated over the sphere by Gauss-Legendre quadrature in z and the trapezoidal rule around it."""
    import numpy as np

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    angles = torch.arange(16, dtype=DOUBLE) * (math.pi / 8)
    radius = (1 - nodes**2).sqrt()[:, None]
    points = torch.stack([radius * angles.cos(), radius * angles.sin(), nodes[:, None].expand(8, 16)], dim=-1)
    basis = sh_basis(points, 3)
    products = torch.einsum("n,nak,nal->kl", weights * (math.pi / 8), basis, basis)
    torch.testing.assert_close(products, torch.eye(16, dtype=DOUBLE))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The operations are small: a second thread gains little, and loses much while another program has the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timing
@pytest.mark.parametrize(("count", "size", "pixels", "limit"), [(10_000, 0.05, 64, 0.5), (200_000, 0.02, 128, 5.0)])
@pytest.mark.usefixtures("one_thread")
def test_speed(count: int, size: float, pixels: int, limit: float) -> None:
    """With SH degree 3; the limits are over ten times what one core takes (0.03 s and 0.35 s)."""
    gaussians, cameras = random_gaussians(count, seed=18, size=size), orbit(1, pixels, pixels)
    assert min(_seconds(lambda: render(gaussians, cameras)) for _ in range(3)) < limit


@pytest.mark.skipif(importlib.util.find_spec("gsplat") is not None, reason="gsplat is installed")
def test_a_renderer_that_is_not_installed_says_how_to_install_it() -> None:
    on_gpu = cast(Tensor, SimpleNamespace(is_cuda=True, dtype=torch.float32))  # the package is what is missing
    with pytest.raises(BackendUnavailableError, match="is not installed .*-r requirements/locks/cuda.txt"):
        gsplat_backend._load(on_gpu)


def test_bad_arguments() -> None:
    gaussians, cameras = random_gaussians(5, seed=20), orbit(1, 8, 8)

    def refuses(error: type[UserError], match: str, call: Callable[[], Rendering]) -> None:
        with pytest.raises(error, match=match):
            call()

    refuses(BackendUnavailableError, "unknown renderer 'vulkan'", lambda: render(gaussians, cameras, backend="vulkan"))
    refuses(BackendUnavailableError, "CUDA device, not cpu", lambda: render(gaussians, cameras, backend="gsplat"))
    refuses(UserError, "float32 or float64, not torch.bfloat16", lambda: render(gaussians.to(torch.bfloat16), cameras))
    mixed = dataclasses.replace(gaussians, sh=gaussians.sh.double())
    refuses(UserError, "one precision and device", lambda: render(mixed, cameras))
    short = dataclasses.replace(gaussians, sh=gaussians.sh[:, :5])
    refuses(UserError, "SH coefficients, not 5", lambda: render(short, cameras))
    batch = random_gaussians(5, seed=20, batch=(2,))
    refuses(UserError, "leading dimensions", lambda: render(batch, cameras))
    refuses(UserError, "near 2.0 and far 1.0", lambda: render(gaussians, cameras, near=2.0, far=1.0))
    refuses(UserError, "near 0.0", lambda: render(gaussians, cameras, near=0.0))
    refuses(UserError, "three numbers", lambda: render(gaussians, cameras, background=(1.0,)))
    flat = dataclasses.replace(cameras, height=0)
    refuses(UserError, "image size must be positive", lambda: render(gaussians, flat))


def _no_views(cameras: Cameras) -> Cameras:
    return dataclasses.replace(cameras, camera_to_world=cameras.camera_to_world[:0], intrinsics=cameras.intrinsics[:0])


def _with_gradients(gaussians: Gaussians, cameras: Cameras) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Images, alphas and depths, and the gradients of a fixed weighting of their pixels."""
    leaves = [t.detach().clone().requires_grad_() for t in gaussians.tensors]
    found = render(Gaussians(*leaves), cameras)
    images = (found.images, found.alphas, found.depths)
    ramp = torch.linspace(-1, 1, cameras.width)
    gradients = torch.autograd.grad(sum((t * ramp).sum() for t in images), leaves)
    return tuple(t.detach() for t in images), gradients


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
