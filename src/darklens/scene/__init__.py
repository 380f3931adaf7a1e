"""Scenes composed of mass profiles, light profiles, a PSF and a detector."""

from darklens.scene.components import LightModel, MassModel
from darklens.scene.imaging import Detector
from darklens.scene.light_profiles import MultiGaussian, Sersic, Shapelets
from darklens.scene.mass_profiles import EPL, NFW, SIE, SIS, TNFW, LineMass, Multipole, PointMass, PseudoJaffe, Shear
from darklens.scene.observation import Observation, PhotonNoise
from darklens.scene.profile import Free, LightProfile, MassProfile
from darklens.scene.psf import PSF
from darklens.scene.scene import Scene
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
