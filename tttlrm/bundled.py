"""The small models that come with the package: trained on procedural scenes, for trying everything without downloads.

Their cards are beside them, in ``tttlrm/weights/``: how each was trained, what it reaches, and where it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.checkpoints import digest
from tttlrm.errors import CheckpointError, UserError

Content = Literal["object", "room"]

IMAGE_SIZE = 128
"""Longer side of the images that they were trained on, in pixels."""

_FOLDER = Path(__file__).parent / "weights"
_NEAREST, _FARTHEST = 1.0, 4.0
_AIM = 0.5


@dataclass(frozen=True)
class BundledModel:
    """One of them.

    Attributes:
        name: as ``--weights`` takes it.
        content: what it was trained on: objects around the origin, or rooms seen from inside.
        schedule: of the fast-weight updates it was trained with.
        sha256: of the weights.
    """

    name: str
    content: Content
    schedule: Literal["full", "ar"]
    sha256: str

    @property
    def path(self) -> Path:
        return _FOLDER / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """Its model card, in Markdown."""
        return self.path.with_suffix(".md")


BUNDLED = {
    model.name: model
    for model in (
        BundledModel(
            "tiny-object", "object", "full", "9e561b04ab8334ca71be18b366e34f09f9770c75863ad28f3c280244d755d70d"
        ),
        BundledModel(
            "tiny-object-ar", "object", "ar", "a492892d3d8399536cbb3b47c5a5658a9787fcd4f6d1eb6ee494a85402b06995"
        ),
        BundledModel(
            "tiny-object-attention",
            "object",
            "full",
            "42ec327c92aca5d5a15fc9083d8d19d627e10ef1992121143447f1966d036099",
        ),
        BundledModel("tiny-room", "room", "full", "ae48490763f72851f49bd067c69bb37b6e80c768ef1580693ed421a44860a196"),
        BundledModel("tiny-room-ar", "room", "ar", "eba7a1b9f4510b674013e71a4903665a78812c43a0225381fe021ada6cf664f6"),
    )
}


def bundled_model(name: str) -> BundledModel:
    """A model by name, once its file is known to be the right one.

    Raises:
        UserError: there is no such model.
        CheckpointError: its file is missing or has been changed.
    """
    if name not in BUNDLED:
        raise UserError(f"there is no bundled model {name!r}; there are {', '.join(BUNDLED)}")
    model = BUNDLED[name]
    if not model.path.is_file():
        raise CheckpointError(f"{model.path}: the bundled model is missing; install tttlrm again")
    found = digest(model.path)
    if found != model.sha256:
        raise CheckpointError(
            f"{model.path}: the bundled model has been changed (sha256 {found}, not {model.sha256}); "
            "install tttlrm again"
        )
    return model


def default_model(cameras: Cameras, schedule: str) -> BundledModel:
    """The tttLRM for a scene's cameras [V], given in the scene's own world, and a schedule."""
    content: Content = "object" if looks_like_object(cameras.camera_to_world) else "room"
    return bundled_model(f"tiny-{content}-ar" if schedule == "ar" else f"tiny-{content}")


def looks_like_object(camera_to_world: Tensor) -> bool:
    """Whether cameras [V, 4, 4] stand around the origin and look at it, as in captures of an object in [-1, 1]^3.

    That is the frame in which the object models were trained: all cameras at a distance of about 1 to 4, and the
    origin within half a unit of where each looks.
    """
    poses = camera_to_world.double()
    positions, directions = poses[:, :3, 3], poses[:, :3, 2]
    distances = positions.norm(dim=-1)
    ahead = -(positions * directions).sum(-1)
    beside = (positions + ahead[:, None] * directions).norm(dim=-1)
    around = (distances > _NEAREST) & (distances < _FARTHEST) & (ahead > 0) & (beside < _AIM)
    return bool(around.all())
