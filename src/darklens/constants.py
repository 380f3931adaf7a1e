"""Tensors of constants, which each device receives once."""

from functools import lru_cache

import torch
from jaxtyping import Shaped
from torch import Tensor


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached tensors must also serve in training
def constant(values: tuple[float | int, ...], dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, " n"]:
    """Return the values as a tensor, which must not be changed in place."""
    return torch.tensor(values, dtype=dtype, device=device)
