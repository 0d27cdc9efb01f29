"""Procedural scenes: sensible pictures and cameras, reproducible and disjoint scenes, files."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttlrm.cameras import Cameras, pixel_rays
from tttlrm.errors import SceneError, UserError
from tttlrm.scenes import load_views, read_scene, select_views
from tttlrm.scenes.procedural import (
    ProceduralSpec,
    make_batch,
    render_scenes,
    sample_cameras,
    scene_parameters,
    tracing,
    write_scene,
)
from tttlrm.scenes.procedural.atlas import NUM_IMAGES, load_atlas
from tttlrm.scenes.procedural.draws import Draws
from tttlrm.scenes.procedural.parameters import ROOM_LAYOUT, Kind
from tttlrm.scenes.procedural.parts import Parts
from tttlrm.scenes.procedural.rooms import _too_near
from tttlrm.scenes.procedural.scenes import SPLIT_SIZE
from tttlrm.scenes.procedural.textures import fractal_noise
from tttlrm.scenes.procedural.tracing import trace

OBJECTS, ROOMS = ProceduralSpec("object"), ProceduralSpec("room")
GOLDEN_UNIFORM = [
    *(0.6638262883354656, 0.5537838425150485),
    *(0.8193663223246749, 0.6743014197402513),
    *(0.3972055556493115, 0.5852911969436999),
]
GOLDEN_KINDS = [3, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 5, 0]


# --- Pictures -------------------------------------------------------------------------------------------------------


def test_objects_are_seen_on_a_white_background() -> None:
    batch = make_batch(OBJECTS, range(200, 216), 3, (24, 24))
    images, masks, depths = batch.views.images, batch.masks, batch.depths
    background = (masks == 0).expand_as(images)
    assert torch.all(images[background] == 1.0)
    assert torch.all(depths[masks == 0] == 0.0)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert float(masks.mean((2, 3, 4)).min()) > 0.01, "every view shows something"
    assert float(masks.mean((1, 2, 3, 4)).min()) > 0.03
    distance = batch.views.camera_to_world[..., :3, 3].norm(dim=-1)
    assert float(distance.min()) >= 1.5 - 1e-4 and float(distance.max()) <= 2.8 + 1e-4
    hit = depths[masks > 0]
    assert float(hit.min()) > 0.1 and float(hit.max()) < 2.8 + 3**0.5


def test_objects_lie_in_the_unit_cube() -> None:
    scenes = scene_parameters(OBJECTS, range(64))
    cameras = sample_cameras(scenes, 3, (24, 24))
    depth = render_scenes(scenes, cameras, samples=1).depths[:, :, 0, :, :, None]
    origins, directions = pixel_rays(cameras)
    z = (directions * cameras.camera_to_world[..., None, None, :3, 2]).sum(-1, keepdim=True)
    points = (origins + directions * depth / z)[depth[..., 0] > 0]
    assert float(points.abs().max()) <= 1 + 1e-4


def test_rooms_are_closed_and_their_cameras_have_space() -> None:
    scenes = scene_parameters(ROOMS, range(300, 330))
    cameras = sample_cameras(scenes, 3, (9, 16))
    rendering = render_scenes(scenes, cameras, samples=1)
    assert torch.all(rendering.masks == 1)
    assert float(rendering.depths.min()) > 0.2
    assert float(rendering.depths.flatten(2).median(-1).values.min()) > 0.5, "no camera faces a wall"
    # Nothing is nearer than the clearance in any direction, seen or not.
    positions = cameras.camera_to_world[..., :3, 3]
    around = Draws(torch.arange(scenes.num_scenes), "directions").directions(200).float()
    for view in range(cameras.num_views):
        origin = tuple(positions[:, view, :, None].unbind(1))
        distance, _ = trace(scenes, origin, tuple(around.unbind(-1)))  # type: ignore[arg-type]
        assert float(distance.min()) > 0.25


def test_what_a_camera_could_touch_is_left_out() -> None:
    count = ROOM_LAYOUT.tori + 10 + 20
    identity = torch.eye(3).double().expand(1, count, 3, 3)
    centers = torch.stack([torch.arange(count).double() * 2, torch.zeros(count), torch.zeros(count)], dim=-1)[None]
    sizes = torch.full((1, count, 3), 0.5).double()
    parts = Parts(torch.full((1, count), Kind.BOX), identity, centers, sizes, torch.zeros_like(sizes))
    along_y = torch.stack([torch.zeros(8), torch.linspace(-5, 5, 8), torch.zeros(8)], dim=-1).double()
    by_a_thing = along_y + torch.tensor([2 * 4 + 0.7, 0.0, 0.0])
    by_a_cabinet = along_y + torch.tensor([2 * 19 + 0.7, 0.0, 0.0])  # a primitive of the second piece of furniture
    by_the_focus = along_y + torch.tensor([2 * 14 + 0.7, 0.0, 0.0])
    gone = [
        _too_near(parts, path[None], ROOM_LAYOUT.tori)[0].nonzero()[:, 0].tolist()
        for path in (by_a_thing, by_a_cabinet, by_the_focus)
    ]
    assert gone == [[4], list(range(17, 22)), list(range(17))], "a thing; a whole cabinet; the focus and all on it"


def test_room_views_follow_a_smooth_path() -> None:
    cameras = sample_cameras(scene_parameters(ROOMS, range(20)), 48, (18, 32))
    steps = cameras.camera_to_world[..., :3, 3].diff(dim=1).norm(dim=-1)
    assert float(steps.max()) < 0.35
    axes = cameras.camera_to_world[..., :3, 2]
    turns = torch.rad2deg((axes[:, 1:] * axes[:, :-1]).sum(-1).clamp(-1, 1).acos())
    assert float(turns.max()) < 20
    ends = (cameras.camera_to_world[:, 0, :3, 3] - cameras.camera_to_world[:, -1, :3, 3]).norm(dim=-1)
    assert float(ends.median()) > 0.5


@pytest.mark.parametrize("spec", [OBJECTS, ROOMS])
def test_pictures_are_neither_dull_nor_burnt_out(spec: ProceduralSpec) -> None:
    batch = make_batch(spec, range(400, 424), 1, (16, 16))
    images, inside = batch.views.images, batch.masks > 0.99
    brightness = [
        float(image.mean(0)[mask[0]].mean())
        for image, mask in zip(images.flatten(0, 1), inside.flatten(0, 1), strict=True)
        if mask.any()
    ]
    assert np.quantile(brightness, 0.1) > 0.1 and np.quantile(brightness, 0.9) < 0.85
    surface = images.movedim(2, -1)[inside[:, :, 0]]
    assert float(surface.quantile(0.02)) < 0.15 and float(surface.quantile(0.98)) > 0.75
    assert float((surface > 0.999).double().mean()) < 0.05


def test_image_sizes_agree() -> None:
    """Patterns are filtered: a large image, averaged, is about the small one."""
    scenes = scene_parameters(OBJECTS, range(12))
    large = render_scenes(scenes, sample_cameras(scenes, 1, (64, 64))).images
    small = render_scenes(scenes, sample_cameras(scenes, 1, (32, 32))).images
    averaged = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).unflatten(0, (12, 1))
    assert float((averaged - small).abs().mean()) < 0.015


def test_each_pixel_is_the_mean_of_its_samples() -> None:
    scenes = scene_parameters(OBJECTS, range(4))
    cameras = sample_cameras(scenes, 1, (16, 16))
    doubled = Cameras(cameras.camera_to_world, cameras.intrinsics * 2, 32, 32)
    fine, coarse = render_scenes(scenes, doubled, samples=1), render_scenes(scenes, cameras, samples=2)
    pooled = torch.nn.functional.avg_pool2d(fine.masks.flatten(0, 1), 2).unflatten(0, (4, 1))
    torch.testing.assert_close(pooled, coarse.masks, atol=0, rtol=0)
    total = torch.nn.functional.avg_pool2d(fine.depths.flatten(0, 1), 2).unflatten(0, (4, 1))
    torch.testing.assert_close(total, coarse.depths * coarse.masks, atol=1e-5, rtol=1e-5)
    pooled = torch.nn.functional.avg_pool2d(fine.images.flatten(0, 1), 2).unflatten(0, (4, 1))
    torch.testing.assert_close(pooled, coarse.images, atol=1e-4, rtol=0)


def test_large_images_are_rendered_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = scene_parameters(OBJECTS, [3, 4, 5])
    cameras = sample_cameras(scenes, 2, (22, 16))
    whole = render_scenes(scenes, cameras)
    monkeypatch.setattr("tttlrm.scenes.procedural.tracing._WORK_AT_ONCE", {"cpu": 5000})
    strips = render_scenes(scenes, cameras)
    torch.testing.assert_close(strips.images, whole.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(strips.depths, whole.depths, atol=1e-5, rtol=0)


def test_noise_is_continuous_centred_and_fades() -> None:
    line = torch.linspace(-20, 20, 40001)
    zero, seed = torch.zeros_like(line), torch.full_like(line, 5, dtype=torch.int32)
    noise = fractal_noise((line, zero + 0.3, zero + 0.7), seed, zero)
    assert float(noise.abs().max()) < 1.6 and float(noise.std()) > 0.2
    assert abs(float(noise.mean())) < 0.15
    assert float(noise.diff().abs().max()) < 0.03
    assert float(fractal_noise((line, zero, zero), seed, zero + 1.0).abs().max()) == 0.0
    other = fractal_noise((line, zero + 0.3, zero + 0.7), seed + 1, zero)
    assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.3


def test_atlas_shows_the_images_and_mirrors_them() -> None:
    import skimage.data

    atlas = load_atlas()
    assert atlas.num_images == NUM_IMAGES
    center = torch.tensor([0.5])
    square = torch.from_numpy(skimage.data.astronaut()).double() / 255  # the first tile is this square image
    coarse = torch.stack(atlas.lookup(torch.zeros(1), center / 8, center / 8, torch.full((1,), 3)), -1)[0]
    assert coarse.tolist() == pytest.approx(square[:64, :64].mean((0, 1)).tolist(), abs=0.05)
    for u, mirrored in ((-0.2, 0.2), (1.3, 0.7), (2.1, 0.1)):
        a = atlas.lookup(torch.zeros(1), torch.tensor([u]), center, torch.zeros(1))
        b = atlas.lookup(torch.zeros(1), torch.tensor([mirrored]), center, torch.zeros(1))
        assert torch.allclose(torch.stack(a), torch.stack(b), atol=1e-3)


def test_missing_image_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ModuleNotFoundError):
        load_atlas.__wrapped__("cpu")


# --- Reproducibility ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [OBJECTS, ROOMS])
def test_a_scene_depends_on_its_index_alone(spec: ProceduralSpec) -> None:
    together, alone = scene_parameters(spec, [7, 3, 10**9]), scene_parameters(spec, [3])
    for group in ("shapes", "materials", "lights", "viewpoints"):
        for name, value in vars(getattr(alone, group)).items():
            torch.testing.assert_close(getattr(getattr(together, group), name)[1:2], value, atol=1e-6, rtol=1e-6)
    first, again = make_batch(spec, [3], 2, (16, 16)), make_batch(spec, [9, 3], 2, (16, 16))
    torch.testing.assert_close(first.views.images[0], again.views.images[1], atol=1e-4, rtol=0)


def test_golden_numbers_of_a_scene() -> None:
    """The drawn scenes must not change unnoticed: trained models and records refer to them by index."""
    draws = Draws(torch.tensor([0, 1, 2**41]), 5, "object", "shapes")
    assert draws.uniform(2).flatten().tolist() == pytest.approx(GOLDEN_UNIFORM, abs=1e-15)
    scenes = scene_parameters(ProceduralSpec("object", seed=5, split="test"), [0])
    assert scenes.shapes.kinds[0].tolist() == GOLDEN_KINDS


def test_view_seed_changes_the_cameras_and_not_the_scene() -> None:
    scenes = scene_parameters(OBJECTS, [1])
    first, second = (sample_cameras(scenes, 3, (16, 16), view_seed=seed) for seed in (0, 1))
    assert not torch.allclose(first.camera_to_world, second.camera_to_world)
    assert not torch.allclose(first.camera_to_world[0, 0], first.camera_to_world[0, 1])


def test_cameras_are_rigid_and_look_at_the_object() -> None:
    cameras = sample_cameras(scene_parameters(OBJECTS, range(20)), 8, (40, 30))
    rotation = cameras.camera_to_world[..., :3, :3]
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), identity, atol=1e-5, rtol=0)
    assert torch.all(torch.linalg.det(rotation) > 0.99)
    position, forward = cameras.camera_to_world[..., :3, 3], cameras.camera_to_world[..., :3, 2]
    miss = torch.linalg.cross(position, forward).norm(dim=-1)  # distance of the origin from the viewing axis
    assert float(miss.max()) < 0.2
    assert torch.all((position * forward).sum(-1) < 0)
    fx, fy, cx, cy = cameras.intrinsics.unbind(-1)
    assert torch.equal(fx, fy) and torch.all(cx == 15) and torch.all(cy == 20)
    angle = torch.rad2deg(2 * torch.atan(15 / fx))
    assert float(angle.min()) > 35 and float(angle.max()) < 65


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, SPLIT_SIZE - 1), min_size=1, max_size=20),
    st.lists(st.integers(0, SPLIT_SIZE - 1), min_size=1, max_size=20),
    st.sampled_from([("train", "validation"), ("train", "test"), ("validation", "test")]),
    st.sampled_from(["object", "room"]),
)
def test_splits_share_no_scene(first: list[int], second: list[int], splits: tuple, kind: str) -> None:
    one, other = (ProceduralSpec(kind, 0, split) for split in splits)  # type: ignore[arg-type]
    assert not set(one.scene_numbers(first)) & set(other.scene_numbers(second))
    assert max(one.scene_numbers([*first, SPLIT_SIZE - 1])) < min(other.scene_numbers([*second, 0]))
    assert len(set(one.scene_numbers(first))) == len(set(first))


def test_different_indices_splits_seeds_and_kinds_differ() -> None:
    specs = [
        OBJECTS,
        ProceduralSpec("object", 1),
        ProceduralSpec("object", 0, "validation"),
        ProceduralSpec("object", 0, "test"),
        ROOMS,
    ]
    keys = torch.cat([scene_parameters(spec, range(50)).keys for spec in specs])
    assert len(keys.unique()) == len(keys)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ProceduralSpec("tree"),  # type: ignore[arg-type]
        lambda: ProceduralSpec("object", split="all"),  # type: ignore[arg-type]
        lambda: ProceduralSpec("object", seed=-1),
        lambda: scene_parameters(OBJECTS, []),
        lambda: scene_parameters(OBJECTS, [-1]),
        lambda: scene_parameters(OBJECTS, [SPLIT_SIZE]),
        lambda: make_batch(OBJECTS, [0], 0, (8, 8)),
        lambda: make_batch(OBJECTS, [0], 1, (0, 8)),
        lambda: render_scenes(
            scene_parameters(OBJECTS, [0]), sample_cameras(scene_parameters(OBJECTS, [0, 1]), 1, (8, 8))
        ),
        lambda: render_scenes(
            scene_parameters(OBJECTS, [0]), sample_cameras(scene_parameters(OBJECTS, [0]), 1, (8, 8)), samples=0
        ),
    ],
)
def test_wrong_arguments_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="procedural scenes: "):
        call()


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [OBJECTS, ROOMS])
def test_written_scenes_are_read_back(spec: ProceduralSpec, tmp_path: Path) -> None:
    file = write_scene(spec, 2, tmp_path / "scene", num_views=20, size=(12, 16))
    scene = read_scene(file.parent)
    batch = make_batch(spec, [2], 20, (12, 16))
    views = load_views(scene, list(range(20)))
    assert float((views.images - batch.views.images[0]).abs().max()) <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(views.camera_to_world.float(), batch.views.camera_to_world[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(views.intrinsics.float(), batch.views.intrinsics[0])
    split = select_views(scene, 8)
    assert split.targets == (0, 8, 16) and len(set(split.inputs)) == 8
    assert sorted(scene.input_frames) == [4, 8, 16]
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(SceneError, match="already"):
        write_scene(spec, 2, tmp_path / "scene", num_views=20, size=(12, 16))


def test_a_scene_of_one_view_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 views"):
        write_scene(OBJECTS, 0, tmp_path, num_views=1, size=(8, 8))
    assert not list(tmp_path.iterdir())


# --- Speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "most"), [(OBJECTS, 0.03), (ROOMS, 0.08)])
def test_a_small_image_takes_a_fraction_of_a_second_of_one_core(spec: ProceduralSpec, most: float) -> None:
    """Processor time rather than wall time, so that other programs count for less: half as much without any."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        for index in range(6):
            scenes = scene_parameters(spec, [index])
            cameras = sample_cameras(scenes, 1, (64, 64))
            samples = []
            for _ in range(4):
                start = time.process_time()
                render_scenes(scenes, cameras)
                samples.append(time.process_time() - start)
            times.append(min(samples))
    finally:
        torch.set_num_threads(threads)
    assert np.mean(times) < most, times


@pytest.mark.parametrize("spec", [OBJECTS, ROOMS])
def test_what_a_cpu_leaves_out_changes_nothing(spec: ProceduralSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = scene_parameters(spec, range(6))
    cameras = sample_cameras(scenes, 2, (24, 32))
    found = render_scenes(scenes, cameras)
    monkeypatch.setattr(tracing, "_sparse", lambda tensor: False)
    everything = render_scenes(scenes, cameras)
    assert torch.equal(found.images, everything.images)
    assert torch.equal(found.depths, everything.depths) and torch.equal(found.masks, everything.masks)
