"""Tensors of constants, which each device receives once."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached tensors must also serve in training
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "*n"]:
    """Return numbers, or rows of numbers, as a tensor, which must not be changed in place."""
    return torch.tensor(values, dtype=dtype, device=device)
