"""Bundles: trained systems stored as folders, and their predictions."""

from darklens.bundle.contract import Contract
from darklens.bundle.fallback import Part, classify
from darklens.bundle.outputs import Classification, Images, InferenceBackend, Output, SmoothFit
from darklens.bundle.predictor import BATCH_SIZE, MICRO_BATCH, UNFAMILIAR, Bundle, batched
from darklens.bundle.storage import sha256_of_bundle

__all__ = [
    "BATCH_SIZE",
    "MICRO_BATCH",
    "UNFAMILIAR",
    "Bundle",
    "Classification",
    "Contract",
    "Images",
    "InferenceBackend",
    "Output",
    "Part",
    "SmoothFit",
    "batched",
    "classify",
    "sha256_of_bundle",
]
