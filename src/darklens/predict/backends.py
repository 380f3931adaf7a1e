"""Inference backends: PyTorch eager, torch.compile, and ONNX Runtime in float32 or int8.

Probabilities agree to `TOLERANCE` between all backends except `int8`.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.bundle import MICRO_BATCH, Bundle, Images, InferenceBackend
from darklens.compilation import compile_function, require_compiler
from darklens.errors import ConfigError, DarklensError
from darklens.export import missing_packages, onnx_program, require_onnx
from darklens.files import atomic_path
from darklens.models.base import Inputs, NetworkOutput, WithFeatures

BackendChoice = Literal["auto", "eager", "compiled", "onnx", "int8"]
BACKENDS: tuple[BackendChoice, ...] = get_args(BackendChoice)

TOLERANCE = 1e-4  # largest difference of probabilities between backends
SMALLEST_ONNX_RUN = 4096  # images; from there, ONNX saves more than the half minute of its export
_LARGEST_INT8_CHANGE = 0.05  # of probabilities, mean over the calibration images


def choose(requested: BackendChoice, bundle: Bundle, n: int, device: torch.device | str | None = None) -> BackendChoice:
    """Return the backend to use for `n` images, after checking that it is available on a device.

    `auto` is `onnx` for many images on a CPU if ONNX Runtime is installed, otherwise `eager`. It is never `int8`, which
    is less accurate. For systems that fit lenses `compiled` is the same as `eager`, since their fits are compiled
    anyway. The device is by default that of the bundle.

    Raises:
        ConfigError: If the system cannot run on the requested backend, or a package or the compiler is missing.
    """
    on_cpu = torch.device(bundle.device if device is None else device).type == "cpu"
    if requested == "auto":
        if n < SMALLEST_ONNX_RUN or bundle.requires_fitting or not on_cpu:
            return "eager"
        return "onnx" if not missing_packages() else "eager"
    if requested == "compiled":
        require_compiler("The compiled backend", "use backend eager")
    if requested in ("onnx", "int8"):
        _require_cpu(requested, on_cpu)
        if bundle.requires_fitting:
            raise ConfigError(
                f"{bundle.contract.recipe} fits lenses iteratively, which ONNX cannot express; use backend eager or "
                "compiled."
            )
        require_onnx(f"The {requested} backend")
    return requested


def _require_cpu(name: BackendChoice, on_cpu: bool) -> None:
    if not on_cpu:
        raise ConfigError(f"The backend {name} computes on the CPU; use device cpu, or backend eager or compiled.")


def backend_of(name: BackendChoice, bundle: Bundle, model: Path | None = None) -> InferenceBackend:
    """Return a backend for a bundle.

    Args:
        name: From `choose`.
        bundle: The bundle.
        model: File written by `write_model`, for onnx and int8.
    """
    if name == "eager" or (name == "compiled" and bundle.fit_settings is not None):
        return bundle
    if name == "compiled":
        return _CompiledNetwork(bundle)
    assert model is not None
    return _OnnxNetwork(bundle, model)


def write_model(name: BackendChoice, bundle: Bundle, path: Path, images: Float[np.ndarray, "b 1 n n"]) -> None:
    """Write the ONNX file of a backend, after checking its probabilities against torch.

    Args:
        name: From `choose`; eager and compiled need no file.
        bundle: The bundle.
        path: File to write.
        images: Example images. They calibrate the range of activations for int8.

    Raises:
        ConfigError: If the network cannot be exported to ONNX.
        DarklensError: If probabilities differ by more than `TOLERANCE`, or for int8 by more than 0.05 on average.
    """
    if name not in ("onnx", "int8"):
        return
    _require_cpu(name, bundle.device.type == "cpu")
    inputs = bundle.inputs_of(images)
    assert isinstance(inputs, Tensor)
    exact = bundle.calibrated(bundle.output(inputs).logits)
    try:
        program = onnx_program(WithFeatures(bundle.network), torch.rand(2, *inputs.shape[1:]), ["logits", "features"])
    except Exception as error:  # the type depends on the layers of the network
        raise ConfigError(
            f"{bundle.contract.recipe} cannot be written as ONNX ({type(error).__name__}); use backend eager."
        ) from None
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)

        def measure_difference() -> Float[np.ndarray, "b classes"]:
            network_output = _OnnxNetwork(bundle, temporary).forward(inputs)
            difference: Float[np.ndarray, "b classes"] = np.abs(
                bundle.calibrated(bundle.output(inputs, network_output).logits) - exact
            )
            return difference

        if name == "int8":
            difference = _quantised(program, temporary, inputs.contiguous().numpy(), measure_difference)
        else:
            difference = measure_difference()
        if name == "onnx" and not difference.max() <= TOLERANCE:
            raise DarklensError(
                f"ONNX Runtime and torch differ by {difference.max():.2g} for {bundle.contract.recipe}, more than "
                f"{TOLERANCE:g}; use backend eager, and please report it."
            )
        if name == "int8" and not difference.mean() <= _LARGEST_INT8_CHANGE:
            raise DarklensError(
                f"int8 changes the probabilities of {bundle.contract.recipe} by {difference.mean():.2g} on average, "
                "which is too inaccurate; use another backend."
            )


class _CompiledNetwork:
    """A network compiled by torch.compile for one batch size; smaller batches are padded."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._network = compile_function(WithFeatures(bundle.network).eval(), freezing=True)

    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        return self._bundle.inputs_of(images, exposure=exposure)

    @torch.inference_mode()
    def forward(self, inputs: Inputs) -> NetworkOutput:
        assert isinstance(inputs, Tensor)
        try:
            return _concatenate([self._network(batch) for batch in _padded(inputs)], len(inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"{self._bundle.contract.recipe} cannot be compiled ({type(error).__name__}); use backend eager."
            ) from None


class _OnnxNetwork:
    """A network run by ONNX Runtime on the CPU; the bundle may be on a GPU, to which outputs are moved."""

    def __init__(self, bundle: Bundle, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Spinning threads would take CPU time from those that read the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._bundle = bundle
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        return self._bundle.inputs_of(images, exposure=exposure)

    def forward(self, inputs: Inputs) -> NetworkOutput:
        assert isinstance(inputs, Tensor)
        parts = []
        for batch in torch.split(inputs, MICRO_BATCH):
            arrays = self._session.run(["logits", "features"], {"image": batch.contiguous().cpu().numpy()})
            parts.append(tuple(torch.from_numpy(np.asarray(value)).to(inputs.device) for value in arrays))
        return _concatenate(parts, len(inputs))


def _padded(inputs: Tensor) -> Iterator[Tensor]:
    for batch in torch.split(inputs, MICRO_BATCH):
        missing = MICRO_BATCH - len(batch)
        padded = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)]) if missing else batch
        yield padded.contiguous(memory_format=torch.channels_last)


def _concatenate(parts: Any, n: int) -> NetworkOutput:
    return NetworkOutput(*(torch.cat(list(each))[:n] for each in zip(*parts, strict=True)))


def _quantised(
    program: Any,
    path: Path,
    inputs: Float[np.ndarray, "b c m m"],
    measure_difference: Callable[[], Float[np.ndarray, "b classes"]],
) -> Float[np.ndarray, "b classes"]:
    """Quantise an ONNX file to int8, and return the differences of the probabilities.

    If the differences are too large, only convolutions and matrix products are quantised: the angles and positions of
    a lens step need more than 8 bits.
    """
    try:
        _quantise(path, inputs, None)
        difference = measure_difference()
    except Exception:  # exceptions of ONNX Runtime have no common base class
        difference = np.full((len(inputs), 1), np.inf)
    if difference.mean() <= _LARGEST_INT8_CHANGE:
        return difference
    program.save(str(path), external_data=False)
    _quantise(path, inputs, ["Conv", "Gemm", "MatMul"])
    return measure_difference()


def _quantise(path: Path, inputs: Float[np.ndarray, "b c m m"], only: list[str] | None) -> None:
    """Quantise weights and activations of an ONNX file to 8 bits, in layers of the types `only`; None for all."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Blocks(quantization.CalibrationDataReader):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            self._blocks = iter(np.split(inputs, range(MICRO_BATCH, len(inputs), MICRO_BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            block = next(self._blocks, None)
            return None if block is None else {"image": block}

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
        # Weights use 7 bits: without VNNI, the sum of two 8-bit products overflows 16 bits.
        quantization.quantize_static(
            str(path),
            str(path),
            Blocks(),
            quant_format=quantization.QuantFormat.QOperator,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=only,
        )
    finally:
        logging.disable(level)
