"""AdamW (or Muon) on one flat vector of all parameters, which decides on the device whether a step is taken.

One vector makes the norm, the skipping of bad steps, the running mean and the sum over processes single operations,
and none of them waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tttlrm.errors import CheckpointError
from tttlrm.training.muon import OrthogonalSteps
from tttlrm.training.settings import OptimizerSettings, Phase

_ALIGNMENT = 32  # elements; compiled code copies operands that do not start at a multiple of 16 bytes
_EPS = 1e-8


class FlatParameters:
    """All parameters of a model as views of one vector.

    Attributes:
        values: [N], the parameters, each starting at a multiple of 32 elements, zeros between them.
        decayed: [N], 1 where weight decay applies: matrices; 0 for norms and biases.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._offsets: dict[str, int] = {}
        size = 0
        for name, parameter in self._parameters.items():
            self._offsets[name] = size
            size += math.ceil(parameter.numel() / _ALIGNMENT) * _ALIGNMENT
        first = next(iter(self._parameters.values()))
        self.values = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.decayed = torch.zeros_like(self.values)
        self._gradient = torch.zeros_like(self.values)
        self._gradients = [self.view(self._gradient, name) for name in self._parameters]
        for name, parameter in self._parameters.items():
            view = self.view(self.values, name)
            view.copy_(parameter.detach())
            parameter.data = view
            if parameter.ndim > 1:
                self.view(self.decayed, name).fill_(1)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a vector [N] that belongs to a parameter, in its shape."""
        parameter, start = self._parameters[name], self._offsets[name]
        return flat[start : start + parameter.numel()].view(parameter.shape)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector [N] as parameters by name."""
        return {name: self.view(flat, name) for name in self._parameters}

    def collect_gradient(self) -> Tensor:
        """[N], the gradients of all parameters (0 where there is none), which are taken off the parameters.

        One vector, overwritten at each call.
        """
        targets, gradients = [], []
        for view, parameter in zip(self._gradients, self._parameters.values(), strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                targets.append(view)
                gradients.append(parameter.grad)
            parameter.grad = None
        if targets:
            torch._foreach_copy_(targets, gradients)
        return self._gradient

    def layout(self) -> dict[str, list[int]]:
        """What a checkpoint must agree in: each parameter's offset and shape."""
        return {name: [self._offsets[name], *parameter.shape] for name, parameter in self._parameters.items()}


class FlatAdamW:
    """AdamW (Loshchilov and Hutter) with clipping, skipping of bad steps, and a running mean of the weights.

    With ``matrices: muon`` the blocks' matrices take orthogonalised steps of Nesterov's momentum instead.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        settings: OptimizerSettings,
        record: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = lambda step: step,
    ) -> None:
        """``record``: wraps the function that takes a step (gradient to its norm), as in a
        :class:`tttlrm.training.graphs.RecordedFunction`."""
        self.parameters = parameters
        self.settings = settings
        self._orthogonal = OrthogonalSteps(parameters) if settings.matrices == "muon" else None
        values = parameters.values
        self.first = torch.zeros_like(values)
        self.second = torch.zeros_like(values)
        self.mean = values.clone()
        """Running mean of the weights (the weights themselves where ``ema_decay`` is 0)."""
        zero = torch.zeros((), dtype=torch.float64, device=values.device)
        self.taken, self.not_finite, self.too_long, self.bad_in_a_row = (zero.clone() for _ in range(4))
        # On the device, where a recorded step reads them.
        self._rate, self._skip_norm = values.new_zeros(()), values.new_zeros(())
        self._recorded_update = record(self._update)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float, skip_norm: float) -> Tensor:
        """Take a step, unless the gradient is not finite or longer than ``skip_norm``. Returns the gradient's norm."""
        self._rate.fill_(learning_rate)
        self._skip_norm.fill_(skip_norm)
        return self._recorded_update(gradient).clone()

    def _update(self, gradient: Tensor) -> Tensor:
        """Every operation's operands are on the device, so that it can be recorded."""
        settings, values = self.settings, self.parameters.values
        norm = torch.linalg.vector_norm(gradient)
        finite = torch.isfinite(norm)
        good = finite & (norm <= self._skip_norm)
        self._count(finite, good)
        keep = good.to(values.dtype)

        scale = (settings.clip_norm / (norm + 1e-12)).clamp(max=1)
        gradient = (gradient * scale).masked_fill(~good, 0)
        beta1, beta2 = settings.betas
        self.first.lerp_(gradient, (1 - beta1) * keep)
        self.second.lerp_(gradient.square(), (1 - beta2) * keep)
        taken = self.taken.clamp(min=1)
        correction1 = (1 - beta1**taken).to(values.dtype)
        correction2 = (1 - beta2**taken).to(values.dtype)
        update = (self.first / correction1) / ((self.second / correction2).sqrt() + _EPS)
        if self._orthogonal is not None:
            self._orthogonal.write(gradient.lerp(self.first, beta1), update)
        update.add_(self.parameters.decayed * values, alpha=settings.weight_decay)
        values.sub_(update * (self._rate * keep))
        self._move_mean(keep)
        return norm

    def _count(self, finite: Tensor, good: Tensor) -> None:
        self.taken += good
        self.not_finite += ~finite
        self.too_long += finite & ~good
        self.bad_in_a_row.copy_((self.bad_in_a_row + 1).masked_fill(good, 0))

    def _move_mean(self, keep: Tensor) -> None:
        decay = self.settings.ema_decay
        if not decay:
            self.mean.copy_(self.parameters.values)
            return
        # Early on, the mean would else be that of random weights.
        warm = ((1 + self.taken) / (10 + self.taken)).clamp(max=decay).to(keep.dtype)
        self.mean.lerp_(self.parameters.values, (1 - warm) * keep)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors on the CPU."""
        return {
            "layout": self.parameters.layout(),
            **{name: tensor.cpu() for name, tensor in self._tensors().items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        if state["layout"] != self.parameters.layout():
            raise CheckpointError("the training checkpoint is of another model than the one configured")
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "values": self.parameters.values,
            "first": self.first,
            "second": self.second,
            "mean": self.mean,
            "taken": self.taken,
            "not_finite": self.not_finite,
            "too_long": self.too_long,
            "bad_in_a_row": self.bad_in_a_row,
        }


def learning_rate(phase: Phase, step: int, progress: float) -> float:
    """Linear warm-up over the phase's first steps, times a cosine from its first to its final learning rate.

    Args:
        step: within the phase, from 0.
        progress: of the phase, from 0 to 1.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    rate = phase.final_learning_rate + (phase.learning_rate - phase.final_learning_rate) * cosine
    return rate * min(1.0, (step + 1) / (phase.warmup_steps + 1))
