"""Fusing a network's passes over its activations with torch.compile."""

import os
import shutil

import torch
from torch import nn

from darklens.errors import ConfigError


def fuse(network: nn.Module) -> None:
    """Compile a network in place; its weights and their names stay as they are.

    Raises:
        ConfigError: If the processor is to compute and there is no C++ compiler.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in compilers):
        raise ConfigError("compile: true needs a C++ compiler such as g++: install one, or leave compile out.")
    network.compile(dynamic=False)
