"""The convolutions of VGG networks (Simonyan and Zisserman, 2015), and VGG-19's weights from a file of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttlrm.checkpoints import unpickle
from tttlrm.errors import UserError, first_line

WANTED = "torchvision's vgg19 weights, as a .pth, .pt or .safetensors file"
_NEEDED = f"perceptual_features=vgg19 needs {WANTED}"
_VGG19_KEYS = tuple(f"features.{index}" for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34))
"""Of the convolutions, as torchvision numbers the layers; ReLU and pooling have the other numbers."""
_VGG19_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Convolution:
    """Weights of one.

    Attributes:
        kernel: [O, I, 3, 3].
        bias: [O].
    """

    kernel: Tensor
    bias: Tensor


class Vgg(nn.Module):
    """Convolutions with ReLU in levels, between which the larger of 2x2 values are taken."""

    def __init__(
        self,
        convolutions: Sequence[Convolution],
        counts: tuple[int, ...],
        taken: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            convolutions: all of the levels below, in order.
            counts: of each level's convolutions.
            taken: for each level, the number (from 1) of the convolution after whose ReLU it gives its features.
            dtype: of the convolutions.
        """
        super().__init__()
        self.counts, self.taken = counts, taken
        for index, convolution in enumerate(convolutions):
            kernel = convolution.kernel.to(dtype).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"kernel{index}", kernel)
            self.register_buffer(f"bias{index}", convolution.bias.to(dtype))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features [V, C, H / 2^l, W / 2^l] of each level l from 0 on, of images [V, 3, H, W] that are normalised."""
        x = x.to(self.get_buffer("kernel0").dtype).contiguous(memory_format=torch.channels_last)
        features, index = [], 0
        for level, (count, taken) in enumerate(zip(self.counts, self.taken, strict=True)):
            x = F.max_pool2d(x, 2) if level else x
            for number in range(1, count + 1):
                x = F.relu(F.conv2d(x, self.get_buffer(f"kernel{index}"), self.get_buffer(f"bias{index}"), padding=1))
                index += 1
                if number == taken:
                    features.append(x)
        return features


def read_vgg19(path: Path) -> list[Convolution]:
    """VGG-19's 16 convolutions in float32 from a file with torchvision's names (``features.0.weight`` and so on).

    Args:
        path: ``.safetensors``, or else a pickle of tensors (``.pth``, ``.pt``), of which nothing is executed.

    Raises:
        UserError: not such a file, or a tensor is missing, of another shape or type, or not finite.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # in a folder that may not be searched
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if is_folder:
        raise UserError(f"{path}: is a folder; {_NEEDED}")
    if not is_file:
        raise UserError(f"{path}: no such file; {_NEEDED}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return [
        Convolution(
            _checked(path, state, f"{key}.weight", (outputs, inputs, 3, 3)),
            _checked(path, state, f"{key}.bias", (outputs,)),
        )
        for key, inputs, outputs in zip(_VGG19_KEYS, _VGG19_CHANNELS[:-1], _VGG19_CHANNELS[1:], strict=True)
    ]


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith("features.")]  # noqa: SIM118
            return {key: file.get_tensor(key) for key in keys}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)})") from None


def _read_pickle(path: Path) -> Mapping[str, object]:
    content = unpickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: does not hold tensors by name; {_NEEDED}")
    return content


def _checked(path: Path, state: Mapping[str, object], key: str, shape: tuple[int, ...]) -> Tensor:
    """A copy in float32: the file's own memory may be the file itself."""
    value = state.get(key)
    if value is None:
        raise UserError(f"{path}: has no {key}; {_NEEDED}")
    if not isinstance(value, Tensor):
        raise UserError(f"{path}: {key} must be a tensor, not of type {type(value).__name__}")
    if value.dtype not in _DTYPES or value.layout is not torch.strided or value.device.type != "cpu":
        kind = f"{value.dtype}, {value.layout}, {value.device}"
        raise UserError(f"{path}: {key} must be a plain tensor of floating-point numbers, not {kind}")
    if tuple(value.shape) != shape:
        raise UserError(f"{path}: {key} must have the shape {list(shape)}, not {list(value.shape)}")
    copy = value.detach().to(torch.float32, copy=True)
    if not copy.isfinite().all():
        raise UserError(f"{path}: {key} has values that are not finite")
    return copy
