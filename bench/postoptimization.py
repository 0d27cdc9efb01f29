"""Post-optimisation: gradient steps on reconstructed Gaussians, with the images of the input views (paper table 7).

The paper gives the number of steps and no recipe; this one is Adam on the mean squared error, with learning rates by
tensor. Gaussians are pruned first, because those that are pruned are never shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.cells import PostOptimization
from bench.errors import SettingsError
from bench.timing import StageTimer
from tttlrm.cameras import Views
from tttlrm.gaussians import Gaussians
from tttlrm.rendering import render

TENSORS = ("positions", "sh", "log_scales", "quaternions", "opacity_logits")


@dataclass(frozen=True)
class PostOptimized:
    """A method whose Gaussians are pruned and improved before they are given out.

    Attributes:
        reconstruct_first: the method's own reconstruction.
        prune: Gaussians -> the kept ones.
    """

    reconstruct_first: Callable[[Views, StageTimer], Gaussians]
    first_stages: tuple[str, ...]
    prune: Callable[[Gaussians], Gaussians]
    how: PostOptimization

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self.first_stages, "optimize")

    def reconstruct(self, views: Views, timer: StageTimer) -> Gaussians:
        gaussians = self.reconstruct_first(views, timer)
        with timer.stage("optimize"):
            return optimize(self.prune(gaussians), views, self.how)


def optimize(gaussians: Gaussians, views: Views, how: PostOptimization) -> Gaussians:
    """Gaussians [N] after ``how.steps`` steps towards the images of the views [V, ...].

    Works under ``torch.inference_mode``, too. Raises SettingsError if a learning rate is missing or of no tensor.
    """
    if set(how.learning_rates) != set(TENSORS):
        raise SettingsError(f"post_optimization.learning_rates must be of {', '.join(TENSORS)}, each once")
    with torch.inference_mode(False), torch.enable_grad():
        tensors = {name: getattr(gaussians, name).clone().requires_grad_() for name in TENSORS}
        optimizer = torch.optim.Adam([{"params": [t], "lr": how.learning_rates[name]} for name, t in tensors.items()])
        for step in range(how.steps):
            optimizer.zero_grad()
            at = _views_of_step(step, views.num_views, how.views_per_step)
            for view in at:  # one at a time, so that memory does not depend on how many there are
                target = views.select([view])
                rendered = render(Gaussians(**tensors), target.cameras).images
                loss = (rendered - target.images.clone()).square().mean() / len(at)
                loss.backward()
            optimizer.step()
        return Gaussians(**{name: tensor.detach() for name, tensor in tensors.items()})


def _views_of_step(step: int, total: int, count: int | None) -> list[int]:
    """Spread over the views, and others in the next step, so that all have their turn."""
    if count is None or count >= total:
        return list(range(total))
    return sorted({(step + round(at * total / count)) % total for at in range(count)})
