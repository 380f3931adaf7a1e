"""How the arithmetic of a bundle is run: operation by operation, fused by torch.compile, or by ONNX Runtime.

All but `int8` give the same classes, and probabilities that agree to `TOLERANCE`.
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

TOLERANCE = 1e-4  # of probabilities, between backends
WORTH_IT = 4096  # images from which the half minute of preparation is made up for
_LARGEST_SHIFT = 0.05  # of a probability by int8, in the mean over the images it was calibrated on


def choose(asked: BackendChoice, bundle: Bundle, n: int) -> BackendChoice:
    """Return the backend to use for `n` images, after checking that it can be used.

    `auto` is `onnx` for many images where that is installed, else `eager`; also for systems that fit lenses, since a
    compiled fit may, once in thousands of images, end elsewhere. It is never `int8`, which is less exact.

    Raises:
        ConfigError: If the system cannot run on the backend asked for, or what that needs is not installed.
    """
    if asked == "auto":
        if n < WORTH_IT or bundle.requires_fitting or bundle.device.type != "cpu":
            return "eager"
        return "onnx" if not missing_packages() else "eager"
    if asked == "compiled":
        require_compiler("The compiled backend", "use backend eager")
    if asked in ("onnx", "int8"):
        if bundle.requires_fitting:
            raise ConfigError(
                f"{bundle.contract.recipe} fits lenses to each image step by step, which ONNX cannot say; use backend "
                "eager or compiled."
            )
        require_onnx("That backend")
    return asked


def backend_of(name: BackendChoice, bundle: Bundle, model: Path | None = None) -> InferenceBackend:
    """Return a backend for a bundle.

    Args:
        name: From `choose`.
        bundle: Whose arithmetic is to be run.
        model: For onnx and int8 the file that `write_model` wrote.
    """
    if name == "eager":
        return bundle
    if name == "compiled":
        return _CompiledFits(bundle) if bundle.fit_settings is not None else _CompiledNetwork(bundle)
    assert model is not None
    return _OnnxNetwork(bundle, model)


def write_model(name: BackendChoice, bundle: Bundle, path: Path, images: Float[np.ndarray, "b 1 n n"]) -> None:
    """Write the file of a backend that needs one, after checking it against torch on some images.

    Args:
        name: From `choose`; eager and compiled need no file.
        bundle: Whose network it is.
        path: File to write.
        images: Some of the images to come; int8 takes the range of each layer's values from them.

    Raises:
        ConfigError: If ONNX cannot say what the network does.
        DarklensError: If probabilities differ by more than `TOLERANCE`, or for int8 by much in the mean.
    """
    if name not in ("onnx", "int8"):
        return
    inputs = bundle.inputs_of(images)
    assert isinstance(inputs, Tensor)
    exact = bundle.calibrated(bundle.output(inputs).logits)
    try:
        program = onnx_program(WithFeatures(bundle.network), torch.rand(2, *inputs.shape[1:]), ["logits", "features"])
    except Exception as error:  # of many kinds, by what the network holds
        raise ConfigError(
            f"{bundle.contract.recipe} cannot be written as ONNX ({type(error).__name__}); use backend eager."
        ) from None
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)

        def difference_now() -> Float[np.ndarray, "b classes"]:
            network_output = _OnnxNetwork(bundle, temporary).forward(inputs)
            difference: Float[np.ndarray, "b classes"] = np.abs(
                bundle.calibrated(bundle.output(inputs, network_output).logits) - exact
            )
            return difference

        if name == "int8":
            difference = _quantised(program, temporary, inputs.contiguous().numpy(), difference_now)
        else:
            difference = difference_now()
        if name == "onnx" and not difference.max() <= TOLERANCE:
            raise DarklensError(
                f"ONNX Runtime and torch differ by {difference.max():.2g} for {bundle.contract.recipe}, more than "
                f"{TOLERANCE:g}; use backend eager, and please report it."
            )
        if name == "int8" and not difference.mean() <= _LARGEST_SHIFT:
            raise DarklensError(
                f"8-bit numbers move the probabilities of {bundle.contract.recipe} by {difference.mean():.2g} in the "
                "mean, which is too much to be of use; use another backend."
            )


class _CompiledFits:
    """Lenses are fitted by fused code; the network that looks at the fits is a small part of the work."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        return self._bundle.inputs_of(images, exposure=exposure, backend="compiled")

    def forward(self, inputs: Inputs) -> NetworkOutput:
        return self._bundle.forward(inputs)


class _CompiledNetwork:
    """A network as fused code for batches of one size, to which others are filled up."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._network = compile_function(WithFeatures(bundle.network).eval(), freezing=True)

    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        return self._bundle.inputs_of(images, exposure=exposure)

    @torch.inference_mode()
    def forward(self, inputs: Inputs) -> NetworkOutput:
        assert isinstance(inputs, Tensor)
        try:
            return _joined([self._network(batch) for batch in _filled(inputs)], len(inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"{self._bundle.contract.recipe} cannot be compiled ({type(error).__name__}); use backend eager."
            ) from None


class _OnnxNetwork:
    """A network in ONNX Runtime."""

    def __init__(self, bundle: Bundle, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Threads that wait by spinning take the processor from those that read the next images.
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
            parts.append(tuple(torch.from_numpy(np.asarray(value)) for value in arrays))
        return _joined(parts, len(inputs))


def _filled(inputs: Tensor) -> Iterator[Tensor]:
    for batch in torch.split(inputs, MICRO_BATCH):
        missing = MICRO_BATCH - len(batch)
        filled = torch.cat([batch, batch[-1:].expand(missing, -1, -1, -1)]) if missing else batch
        yield filled.contiguous(memory_format=torch.channels_last)


def _joined(parts: Any, n: int) -> NetworkOutput:
    return NetworkOutput(*(torch.cat(list(each))[:n] for each in zip(*parts, strict=True)))


def _quantised(
    program: Any,
    path: Path,
    inputs: Float[np.ndarray, "b c m m"],
    difference_now: Callable[[], Float[np.ndarray, "b classes"]],
) -> Float[np.ndarray, "b classes"]:
    """Make the file's numbers 8-bit ones, and return by how much probabilities then differ.

    Of networks with a lens step only the products are, since angles and places of light need more digits than 8 bits.
    """
    try:
        _quantise(path, inputs, None)
        difference = difference_now()
    except Exception:  # of many kinds: ONNX Runtime's have no base of their own
        difference = np.full((len(inputs), 1), np.inf)
    if difference.mean() <= _LARGEST_SHIFT:
        return difference
    program.save(str(path), external_data=False)
    _quantise(path, inputs, ["Conv", "Gemm", "MatMul"])
    return difference_now()


def _quantise(path: Path, inputs: Float[np.ndarray, "b c m m"], only: list[str] | None) -> None:
    """Turn the file of a network into one with 8-bit weights and activations, of `only` some sorts of layers."""
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
        # Weights keep 7 bits: without VNNI, sums of two products of 8 bits each overflow 16.
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
