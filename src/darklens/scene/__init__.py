"""Scenes composed of mass profiles, light profiles, a PSF and a detector."""

from darklens.scene.imaging import Detector
from darklens.scene.observation import Observation, PhotonNoise
from darklens.scene.profiles import (
    EPL,
    NFW,
    SIE,
    SIS,
    TNFW,
    Free,
    LightProfile,
    LineMass,
    MassProfile,
    MultiGaussian,
    Multipole,
    PointMass,
    PseudoJaffe,
    Sersic,
    Shapelets,
    Shear,
)
from darklens.scene.psf import PSF
from darklens.scene.scene import LightModel, MassModel, Scene
from darklens.scene.source_grid import SourceGrid

__all__ = [
    "EPL",
    "NFW",
    "PSF",
    "SIE",
    "SIS",
    "TNFW",
    "Detector",
    "Free",
    "LightModel",
    "LightProfile",
    "LineMass",
    "MassModel",
    "MassProfile",
    "MultiGaussian",
    "Multipole",
    "Observation",
    "PhotonNoise",
    "PointMass",
    "PseudoJaffe",
    "Scene",
    "Sersic",
    "Shapelets",
    "Shear",
    "SourceGrid",
]
