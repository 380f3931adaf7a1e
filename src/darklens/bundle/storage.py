"""Reading and writing of bundle folders; nothing in them is executed.

BUNDLE/model.safetensors    weights
BUNDLE/ood.safetensors      reference of the out-of-distribution score; absent in older bundles
BUNDLE/bundle.json          the contract: how to build the network, its inputs and classes, calibration, provenance
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save as save_numpy
from safetensors.torch import load_file, save
from torch import nn

from darklens import aliases, plugins
from darklens.bundle.contract import Contract
from darklens.calibration import MahalanobisStats
from darklens.config import LONGEST_PROBLEM, keys_in_file, shortened
from darklens.errors import InputError
from darklens.files import atomic_path, read_json, sha256_of, write_json
from darklens.locate import CONTRACT

WEIGHTS, OOD_REFERENCE = "model.safetensors", "ood.safetensors"
LARGE = 2**16  # numbers in a tensor
FILES = (WEIGHTS, OOD_REFERENCE, CONTRACT)
_MAX_CONTRACT = 50_000_000  # bytes; its values take many times as much memory
T = TypeVar("T")


class StoredBundle(NamedTuple):
    """The contents of a bundle folder."""

    contract: Contract
    network: nn.Module
    ood_reference: MahalanobisStats | None


def read(folder: Path) -> StoredBundle:
    """Return the contents of a bundle folder.

    Raises:
        InputError: If a file is missing or damaged, or of an unsupported version.
    """
    contract = _read_contract(folder / CONTRACT)
    weights = folder / WEIGHTS
    _check_digest(weights, contract.weights_sha256)
    _check_shapes(weights, contract)
    network = contract.build()
    try:
        network.load_state_dict(_with_current_names(load_file(weights), network))
    except (SafetensorError, RuntimeError) as error:
        raise _mismatch(weights, error) from None
    return StoredBundle(contract, network, _read_ood_reference(folder, contract))


def write(
    folder: Path, contract: Contract, network: nn.Module, ood_reference: MahalanobisStats | None, *, half: bool = False
) -> None:
    """Write weights and contract; the contract last, so that an interrupted write leaves no bundle.

    Args:
        folder: Folder to write.
        contract: The contract; its digests are replaced by those of the files.
        network: The network.
        ood_reference: The reference of the OOD score, if there is one.
        half: Write tensors of more than `LARGE` numbers as float16, which almost halves the file. The kernels of the
            first layers are smaller, and their rounding would change the output most.
    """
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    if half:
        weights = {name: value.half() if value.numel() > LARGE else value for name, value in weights.items()}
    # `save_file` would hide the reason of a failure to write.
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))
    digests = {"weights_sha256": sha256_of(folder / WEIGHTS), "ood_sha256": ""}
    if ood_reference is not None:
        with atomic_path(folder / OOD_REFERENCE) as temporary:
            temporary.write_bytes(save_numpy({k: np.ascontiguousarray(v) for k, v in ood_reference._asdict().items()}))
        digests["ood_sha256"] = sha256_of(folder / OOD_REFERENCE)
    write_json(folder / CONTRACT, contract.model_copy(update=digests).model_dump(mode="json", by_alias=True))


def sha256_of_bundle(folder: Path) -> str:
    """Return one digest of weights and contract."""
    text = f"{sha256_of(folder / WEIGHTS)},{sha256_of(folder / CONTRACT)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read_contract(path: Path) -> Contract:
    try:
        tree = read_json(path, max_bytes=_MAX_CONTRACT)
        return Contract.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = shortened(".".join(keys_in_file(tree, first["loc"]))) or "its content"
        problem = shortened(first["msg"].removeprefix("Value error, ").rstrip("."), LONGEST_PROBLEM)
        remedy = "train the model or download it again"
        if plugins.VARIABLE in problem:  # an unknown name, and those that are known
            problem = problem.partition(":")[0]
            remedy = f"if a plug-in defines it, name the plug-in in {plugins.VARIABLE}"
        raise InputError(f"{path}: {key}: {problem}; {remedy}.") from None


def _check_digest(path: Path, sha256: str) -> None:
    if not path.is_file() or sha256_of(path) != sha256:
        raise InputError(f"{path} is missing or does not match its contract; train the model or download it again.")


def _check_shapes(weights: Path, contract: Contract) -> None:
    """Raise unless the shapes of the weights match the contract, before memory is allocated for them."""
    try:
        with torch.device("meta"):
            network = contract.build()
        expected = {name: list(value.shape) for name, value in network.state_dict().items()}
        with safe_open(weights, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _mismatch(weights, error) from None
    stored = _with_current_names(shapes, network)
    wrong = sorted(k for k in expected.keys() | stored.keys() if expected.get(k) != stored.get(k))
    if wrong:
        stored_shape, expected_shape = (names.get(wrong[0], "missing") for names in (stored, expected))
        raise _mismatch(weights, f"{wrong[0]} is {stored_shape}, not {expected_shape}")


def _with_current_names(stored: Mapping[str, T], network: nn.Module) -> dict[str, T]:
    """Rename stored values to the current module names of the network."""
    expected = network.state_dict().keys()
    return {aliases.state_dict_name(name, expected): value for name, value in stored.items()}


def _mismatch(weights: Path, reason: Exception | str) -> InputError:
    first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return InputError(f"{weights} does not match the network in its contract ({first_line}).")


def _read_ood_reference(folder: Path, contract: Contract) -> MahalanobisStats | None:
    """Return the reference of the OOD score; None for a bundle without one."""
    if not contract.ood_sha256:
        return None
    path = folder / OOD_REFERENCE
    _check_digest(path, contract.ood_sha256)
    try:
        return MahalanobisStats(**load_numpy(path))
    except (SafetensorError, TypeError):
        raise InputError(f"{path} does not match its contract; train the model or download it again.") from None
