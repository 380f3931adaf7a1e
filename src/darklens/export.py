"""A bundle as one ONNX file: raw images in, probabilities out, for programs without torch."""

import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from darklens.bundle import Bundle
from darklens.calibration import Calibration
from darklens.errors import ConfigError, DarklensError
from darklens.files import atomic_path

TOLERANCE = 1e-4


class _WithPreprocessing(nn.Module):
    """What the file computes: pre-processing, the network, and for a classifier calibrated probabilities."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network = bundle.network
        self._preprocess = bundle.contract.preprocess
        self._classifies = bundle.contract.task == "classify"
        self._temperature = (bundle.contract.calibration or Calibration()).temperature

    def forward(self, image: Float[Tensor, "b 1 n n"]) -> Tensor:
        output: Tensor = self.network(self._preprocess(image))
        return (output / self._temperature).softmax(1) if self._classifies else output


def export_onnx(bundle: Bundle, path: Path) -> float:
    """Write a bundle as ONNX, with its contract in the metadata, after checking it against torch.

    The input `image` is float32 (b, 1, n, n) in any linear brightness scale, for any b; the output is
    `probability` (b, classes), or for an autoencoder `reconstruction` (b, 1, m, m).

    Args:
        bundle: Any trained system.
        path: File to write.

    Returns:
        The largest difference between ONNX Runtime and torch, on test images of ones and of several.

    Raises:
        ConfigError: If the system fits lenses, or the packages of the `onnx` extra are missing.
        InputError: If the bundle is calibrated by curves.
        DarklensError: If the two differ by more than 1e-4; nothing is written then.
    """
    if bundle.requires_fitting:
        raise ConfigError(
            f"{bundle.contract.recipe} fits lenses iteratively, which ONNX cannot express; "
            "use `darklens predict`, or Bundle.classify from Python."
        )
    (bundle.contract.calibration or Calibration()).require_temperature_alone("an ONNX file")
    require_onnx("ONNX export")
    import onnx
    import onnxruntime

    model = _WithPreprocessing(bundle).eval()
    images = _test_images(bundle.contract.n_pixels)
    output_name = "probability" if bundle.contract.task == "classify" else "reconstruction"
    with atomic_path(path) as temporary:
        onnx_program(model, images[:2], [output_name]).save(str(temporary), external_data=False)
        proto = onnx.load(str(temporary))
        entry = proto.metadata_props.add()
        entry.key, entry.value = "darklens", bundle.contract.model_dump_json(by_alias=True)
        onnx.checker.check_model(proto)
        onnx.save(proto, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        difference = 0.0
        for block in (images[:1], images):
            with torch.inference_mode():
                expected = model(block).numpy()
            exported = np.asarray(session.run([output_name], {"image": block.numpy()})[0])
            difference = max(difference, float(np.abs(exported - expected).max()))
        if not difference <= TOLERANCE:
            raise DarklensError(
                f"ONNX Runtime and torch differ by {difference:.2g} for {bundle.contract.recipe}, more than "
                f"{TOLERANCE:g}; nothing was written. Please report it."
            )
    return difference


def require_onnx(what: str) -> None:
    """Check that the packages of the `onnx` extra are there.

    Raises:
        ConfigError: If one is missing; `what` needs it.
    """
    missing = missing_packages()
    if missing:
        raise ConfigError(f"{what} needs {missing[0]}; install it with: pip install 'darklens[onnx]'.")


def missing_packages() -> list[str]:
    """Return those packages of the `onnx` extra that are not installed; onnxscript is what torch's exporter needs."""
    return [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]


def onnx_program(model: nn.Module, images: Float[Tensor, "b c n n"], output_names: Sequence[str]) -> Any:
    """Return torch's ONNX program, with the input `image`, for any number of images, without its chatter."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["image"],
                output_names=list(output_names),
                verbose=False,
            )
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


def _test_images(n: int) -> Float[Tensor, "b 1 n n"]:
    """Return rings of several radii with noise, in counts."""
    axis = torch.linspace(-1, 1, n)
    radius = torch.hypot(axis[:, None], axis[None])
    rings = [torch.exp(-(((radius - 0.3 - 0.1 * i) / 0.1) ** 2)) for i in range(5)]
    noise = torch.rand(5, n, n, generator=torch.Generator().manual_seed(0))
    return (100 * torch.stack(rings) + 20 * noise)[:, None]
