"""Softmax attention behind one function, with a choice of kernels."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tttlrm.errors import BackendUnavailableError

_SDPA = {
    "sdpa": None,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
BACKENDS = ("auto", *_SDPA, "flash-attn", "xformers")
"""``auto``: cuDNN's kernel for half precision on Hopper GPUs and newer (the fastest one measured there), otherwise
PyTorch's own choice. ``sdpa``: PyTorch's choice; ``sdpa-*``: that kernel of PyTorch, or an error."""

_MODULES = {"flash-attn": "flash_attn", "xformers": "xformers.ops"}
_LOCKED = "in a checkout `pip install --no-deps --require-hashes"
_INSTALL = {
    "flash-attn": f"{_LOCKED} --no-build-isolation -r requirements/locks/flash-attn.txt` (needs nvcc), elsewhere "
    "`pip install flash-attn-4` (Hopper and newer) or `pip install --no-build-isolation flash-attn` (needs nvcc)",
    "xformers": f"{_LOCKED} -r requirements/locks/xformers.txt`, elsewhere `pip install xformers`",
}


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(head size)) v, without a mask.

    Args:
        q: [B, T, heads, head size].
        k, v: [B, S, heads, head size].
        backend: one of :data:`BACKENDS`.

    Returns:
        [B, T, heads, head size].

    Raises:
        BackendUnavailableError: the backend is unknown, not installed, or cannot run on these tensors.
    """
    if backend == "auto":
        backend = "sdpa-cudnn" if _prefers_cudnn(q) else "sdpa"
    if backend in _SDPA:
        return _sdpa(q, k, v, backend)
    if backend == "flash-attn":
        module = _import_flash_attention()
        _require_half_cuda(q, backend)
        result = module.flash_attn_func(q, k, v)
        output: Tensor = result[0] if isinstance(result, tuple) else result  # the other one is for gradients
        return output
    if backend == "xformers":
        module = _import(_MODULES[backend], backend)
        _require_half_cuda(q, backend)
        output = module.memory_efficient_attention(q, k, v)
        return output
    raise _unknown(backend)


def require_backend(backend: str) -> None:
    """Raise BackendUnavailableError if the backend is unknown or not installed."""
    if backend not in BACKENDS:
        raise _unknown(backend)
    if backend == "flash-attn":
        _import_flash_attention()
    elif backend in _MODULES:
        _import(_MODULES[backend], backend)


def _import_flash_attention() -> ModuleType:
    """FlashAttention 4, whose kernels are for Hopper and newer, or else FlashAttention 2."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # it compiles for 12 s; keep that on disk
    try:
        return importlib.import_module("flash_attn.cute")
    except ImportError:
        return _import(_MODULES["flash-attn"], "flash-attn")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    kernel = _SDPA[backend]
    if kernel is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    try:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    except RuntimeError as error:
        if not str(error).startswith(("No available kernel", "No viable backend")):
            raise
        raise BackendUnavailableError(
            f"attention backend {backend} cannot run on {q.device.type} tensors of {q.dtype} "
            f"with head size {q.shape[-1]}; use auto or sdpa"
        ) from None


def _prefers_cudnn(q: Tensor) -> bool:
    half = q.dtype in (torch.float16, torch.bfloat16)
    return half and q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 9


def _unknown(backend: str) -> BackendUnavailableError:
    return BackendUnavailableError(f"unknown attention backend {backend!r}; choose one of {', '.join(BACKENDS)}")


def _import(name: str, backend: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BackendUnavailableError(
            f"attention backend {backend} is not installed: {_INSTALL[backend]}, or use auto"
        ) from None


def _require_half_cuda(q: Tensor, backend: str) -> None:
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise BackendUnavailableError(
            f"attention backend {backend} needs float16 or bfloat16 on a CUDA GPU, "
            f"not {q.dtype} on {q.device.type}; use auto or sdpa"
        )
