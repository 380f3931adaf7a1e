"""The C++ compiler of the machine, and torch.compile with the limits that darklens needs."""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from darklens.errors import ConfigError

_COMPILERS = ("g++", "clang++", "cl")
_MAX_KERNELS = 4096  # compiled versions of one function


def compiler(names: Sequence[str] = _COMPILERS) -> str | None:
    """Return the path of the compiler that CXX names, else of the first of `names` that is installed, else None."""
    return next((path for path in map(shutil.which, (os.environ.get("CXX", names[0]), *names)) if path), None)


def require_compiler(feature: str, alternative: str) -> None:
    """Check that there is a C++ compiler.

    Args:
        feature: The part of darklens that needs it, as the subject of a sentence.
        alternative: What to do without one, as an imperative.

    Raises:
        ConfigError: If there is none.
    """
    if compiler() is None:
        raise ConfigError(f"{feature} needs a C++ compiler such as g++: install one, or {alternative}.")


def compile_function(function: Callable[..., Any], *, freezing: bool = False) -> Callable[..., Any]:
    """Return a function of tensors as one fused graph.

    Args:
        function: Compiled at its first call, and again for each new shape.
        freezing: Whether to treat a network's weights as constants.
    """
    # Without a full graph, or past the limit on compilations, torch continues uncompiled without notice, and the last
    # bits differ. Set here because setting it at import would import the compiler, which takes a second.
    torch._dynamo.config.recompile_limit = _MAX_KERNELS
    torch._dynamo.config.accumulated_recompile_limit = _MAX_KERNELS
    options: dict[str, bool | int | str | Callable[..., Any]] | None = {"freezing": True} if freezing else None
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True, options=options)
    return compiled


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compile a network in place for training on a device; its weights and their names stay as they are.

    Raises:
        ConfigError: If training runs on the CPU and there is no C++ compiler.
    """
    if device.type == "cpu":
        require_compiler("compile: true", "omit compile")
    network.compile(dynamic=False)
