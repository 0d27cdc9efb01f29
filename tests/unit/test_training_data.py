"""Batches of training: functions of the seed and the step, with views in the right roles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tttlrm.cameras import normalize_poses
from tttlrm.errors import UserError
from tttlrm.scenes.procedural import ProceduralSpec
from tttlrm.training.data import TrainingBatch, TrainingData
from tttlrm.training.heldout import TRAJECTORY_VIEWS, held_out_scenes, split_views
from tttlrm.training.poses import normalize_batch, scale_poses
from tttlrm.training.settings import DataSettings, Phase

PHASE = Phase((8, 8), 2, (2, 3), learning_rate=1e-3, steps=10)
OBJECTS = DataSettings(novel_targets=2, input_targets=1, steps_per_block=2)
CPU = torch.device("cpu")


def equal(a: TrainingBatch, b: TrainingBatch) -> bool:
    pairs = [(a.depths, b.depths), (a.masks, b.masks)]
    pairs += [(a.input_depths, b.input_depths), (a.input_masks, b.input_masks)]
    for x, y in ((a.inputs, b.inputs), (a.targets, b.targets)):
        pairs += [(x.images, y.images), (x.camera_to_world, y.camera_to_world), (x.intrinsics, y.intrinsics)]
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    in_order = [TrainingData(OBJECTS, 0, CPU).batch(step, PHASE) for step in (0, 3)]
    data = TrainingData(OBJECTS, 0, CPU)
    batches = [data.batch(step, PHASE) for step in range(4)]
    assert equal(batches[3], in_order[1]) and equal(data.batch(0, PHASE), in_order[0])
    assert not equal(TrainingData(OBJECTS, 1, CPU).batch(0, PHASE), in_order[0])
    images = [batch.targets.images[scene, 0] for batch in batches for scene in range(2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_shapes_and_roles_of_views() -> None:
    data = TrainingData(OBJECTS, 0, CPU)
    counts = {data.num_inputs(step, PHASE) for step in range(20)}
    assert counts == {2, 3}
    batch = data.batch(0, PHASE)
    num_inputs = data.num_inputs(0, PHASE)
    assert batch.inputs.images.shape == (2, num_inputs, 3, 8, 8)
    assert batch.targets.images.shape == (2, 3, 3, 8, 8)
    assert batch.depths.shape == batch.masks.shape == (2, 3, 1, 8, 8)
    assert batch.input_depths.shape == batch.input_masks.shape == (2, num_inputs, 1, 8, 8)
    assert batch.shared == 1
    for scene in range(2):  # the last target is one of the inputs: its depth and mask must be those of that input
        shared = batch.targets.camera_to_world[scene, 2]
        at = [torch.equal(shared, pose) for pose in batch.inputs.camera_to_world[scene]].index(True)
        assert torch.equal(batch.input_depths[scene, at], batch.depths[scene, 2])
        assert torch.equal(batch.input_masks[scene, at], batch.masks[scene, 2])
    for scene in range(2):
        poses = list(batch.inputs.camera_to_world[scene])
        shown = [any(torch.equal(target, pose) for pose in poses) for target in batch.targets.camera_to_world[scene]]
        assert shown == [False, False, True]
    half = batch.scenes(slice(1, 2))
    assert torch.equal(half.inputs.images[0], batch.inputs.images[1])
    assert torch.equal(half.depths[0], batch.depths[1])
    assert torch.equal(half.input_depths[0], batch.input_depths[1])
    assert torch.equal(half.input_masks[0], batch.input_masks[1])


def test_passes_use_the_same_scenes_with_other_views() -> None:
    data = TrainingData(replace(OBJECTS, passes=2), 0, CPU)
    turns = [[data.batch(step, PHASE) for step in steps] for steps in ((0, 1), (2, 3))]
    focal = [sorted(float(f) for batch in turn for f in batch.targets.intrinsics[:, 0, 0]) for turn in turns]
    assert focal[0] == focal[1]  # the focal length tells scenes apart
    assert not equal(turns[0][0], turns[1][0])


def test_ordered_inputs_follow_the_path() -> None:
    settings = DataSettings(
        kind="room", poses="first", ordered=True, novel_targets=1, input_targets=0, steps_per_block=1
    )
    phase = Phase((8, 8), 2, (6,), learning_rate=1e-3, steps=10)
    poses = TrainingData(settings, 0, CPU).batch(0, phase).inputs.camera_to_world
    assert torch.allclose(poses[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5)
    path = poses[..., :3, 3]
    steps = (path[:, 1:] - path[:, :-1]).norm(dim=-1).sum(1)
    shuffled = path[:, [0, 3, 1, 4, 2, 5]]
    assert bool((steps < (shuffled[:, 1:] - shuffled[:, :-1]).norm(dim=-1).sum(1)).all())


@pytest.mark.parametrize("frame", ["mean", "first"])
def test_batched_normalisation_is_that_of_single_scenes(frame: str) -> None:
    spec = ProceduralSpec("room", split="test")
    poses = held_out_scenes(spec, [0, 1], 4, 4, (8, 8), "scene").inputs.camera_to_world
    normalized, scales = normalize_batch(poses, frame)  # type: ignore[arg-type]
    for scene, pose in enumerate(poses.double()):
        expected = normalize_poses(pose, frame)  # type: ignore[arg-type]
        assert torch.allclose(normalized[scene].double(), expected.apply(pose), atol=1e-5)
        assert float(scales[scene]) == pytest.approx(expected.scale, rel=1e-5)
    assert float(normalized[..., :3, 3].abs().amax(dim=(1, 2)).max()) == pytest.approx(1, abs=1e-5)


def test_scaling_of_scenes_keeps_depth_and_poses_together() -> None:
    settings = replace(OBJECTS, scale_range=(0.25, 0.25))
    plain, scaled = (TrainingData(s, 0, CPU).batch(0, PHASE) for s in (OBJECTS, settings))
    assert torch.allclose(scaled.depths, plain.depths * 0.25)
    assert torch.allclose(scaled.input_depths, plain.input_depths * 0.25)
    factor = torch.full((2,), 0.25)
    assert torch.allclose(scaled.targets.camera_to_world, scale_poses(plain.targets.camera_to_world, factor))
    assert torch.equal(scaled.inputs.images, plain.inputs.images)


def test_held_out_targets_do_not_depend_on_the_inputs() -> None:
    spec = ProceduralSpec("object", split="test")
    few, many = (held_out_scenes(spec, [5], count, 2, (8, 8), "scene") for count in (2, 6))
    assert torch.equal(few.targets.images, many.targets.images)
    assert torch.equal(few.depths, many.depths)
    for count in (1, 4, 8, 16, 24):
        inputs, targets = split_views(count, 8)
        assert (len(set(inputs)), len(set(targets))) == (count, 8)
        assert not set(inputs) & set(targets)
        assert max(inputs + targets) < TRAJECTORY_VIEWS
    with pytest.raises(UserError, match="too few for 25 inputs and 8 targets"):
        split_views(25, 8)


def test_cropped_images_are_those_of_cameras_with_fewer_rows() -> None:
    rooms = replace(OBJECTS, kind="room", poses="mean")
    whole = replace(PHASE, size=(6, 10))
    cropped = replace(whole, cropped_from=(10, 10))
    expected, batch = (TrainingData(rooms, 0, CPU).batch(0, phase) for phase in (whole, cropped))
    for ours, theirs in ((batch.inputs, expected.inputs), (batch.targets, expected.targets)):
        torch.testing.assert_close(ours.intrinsics, theirs.intrinsics)
        torch.testing.assert_close(ours.images, theirs.images, atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.depths, expected.depths, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="which is smaller"):
        replace(PHASE, cropped_from=(4, 8))
