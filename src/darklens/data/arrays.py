"""Arrays of any type, byte order and strides as tensors, and the border of images."""

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor


def float32_tensor(values: object) -> Float32[Tensor, "..."]:
    """Return real numbers as float32: of a tensor, or an array of any type, byte order and strides.

    Arrays of native float32 are not copied. Masked pixels become NaN, and numbers beyond the range of float32 infinite.

    Raises:
        ValueError: If the values are not real numbers.
    """
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError("the images are complex; give real numbers")
        return values.float()
    array = np.ma.asanyarray(values) if np.ma.isMaskedArray(values) else np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the images are {array.dtype} values; give real numbers")
    with np.errstate(over="ignore"):
        if np.ma.isMaskedArray(array):
            array = np.asarray(np.ma.filled(array.astype(np.float32), np.nan))
        array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def border(n: int, width: int) -> Bool[np.ndarray, "n n"]:
    """Return which pixels of a square image are less than `width` pixels from its edge."""
    pixels = np.ones((n, n), dtype=bool)
    pixels[width:-width, width:-width] = False
    return pixels
