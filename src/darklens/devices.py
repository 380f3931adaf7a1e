"""The devices that compute: the CPU, and GPUs by CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from darklens.errors import ConfigError


def require_device(device: torch.device | str) -> torch.device:
    """Return a device, of CUDA with its number, after checking that it exists.

    Args:
        device: cpu, cuda or cuda:N.

    Raises:
        ConfigError: If there is no such device.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = torch.device("meta")
    if parsed.type not in ("cpu", "cuda"):
        raise ConfigError(f"The device must be cpu, cuda or cuda:N, not {device}.")
    if parsed.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"PyTorch {torch.__version__} finds no CUDA device on this computer; use device cpu, or install a driver "
            "and a CUDA build of PyTorch."
        )
    n = torch.cuda.device_count()
    number = torch.cuda.current_device() if parsed.index is None else parsed.index
    if number >= n:
        names = "cuda:0 alone" if n == 1 else f"cuda:0 to cuda:{n - 1}"
        raise ConfigError(f"There is no device cuda:{number} on this computer, which has {names}.")
    return torch.device("cuda", number)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions of a GPU in float32: by default their products have the 10-bit mantissa of TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
