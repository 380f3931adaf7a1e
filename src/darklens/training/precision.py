"""The floating-point precision of training."""

from typing import Literal

import torch


def precision_of(setting: str, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """Return Lightning's name of a precision. `auto` is bfloat16 only where the device multiplies it natively."""
    if setting == "auto":
        setting = "bfloat16" if _native_bfloat16(device) else "float32"
    return "bf16-mixed" if setting == "bfloat16" else "32-true"


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX or AVX512-BF16 a processor emulates bfloat16, which is slower than float32.
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
