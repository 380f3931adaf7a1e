"""A population of a scene with all that telescope images have, small enough for tests."""

import copy

import numpy as np
import yaml

from darklens import populations


def normal(mean, sigma, low, high):
    return {"kind": "normal", "mean": mean, "sigma": sigma, "low": low, "high": high}


ELLIPTICITY = {name: normal(0, 0.1, -0.3, 0.3) for name in ("e1", "e2")}
TREE = {
    "schema": 1,
    "name": "survey",
    "version": 1,
    "description": "EPL, shear and a multipole, a source, two components of lens light, an image as the PSF",
    "field": {"n_pixels": 40, "pixel_scale": 0.1, "supersample": 2},
    "psf": {"kind": "image", "file": "psf.npy", "oversampling": 2},
    "scene": {
        "mass": {
            "epl": {"theta_E": normal(1.2, 0.1, 1, 1.4), "slope": normal(2.05, 0.1, 1.8, 2.3), **ELLIPTICITY},
            "shear": {name: normal(0, 0.04, -0.1, 0.1) for name in ("gamma1", "gamma2")},
            "multipole4": {"m": 4, "a": normal(0, 0.01, -0.03, 0.03)},
        },
        "source": {
            "source": {
                "kind": "sersic",
                "amplitude": 60,
                "R_e": {"kind": "uniform", "low": 0.15, "high": 0.3},
                "n": 1.2,
                "e1": 0.1,
                "centre_x": {"kind": "uniform", "low": -0.2, "high": 0.2},
                "centre_y": {"kind": "uniform", "low": -0.2, "high": 0.2},
            }
        },
        "lens_light": {
            "bulge": {"kind": "sersic", "amplitude": {"kind": "uniform", "low": 20, "high": 60}, "R_e": 0.4, "n": 3},
            "disc": {"kind": "sersic", "amplitude": 5, "R_e": 1.0, "n": 1, "e1": "bulge.e1", "e2": 0.1},
        },
    },
    "classes": {
        "no": {"kind": "none"},
        "sphere": {"kind": "point_masses", "count": 2, "mass": 8.0e9, "radius": 1.2},
        "vort": {
            "kind": "line_mass",
            "mass_fraction": 0.05,
            "length": 1.5,
            "angle": {"kind": "uniform", "low": 0, "high": 180},
            "position": {"kind": "cartesian", "x": 0.3, "y": 0.1},
        },
    },
    "noise": {"kind": "poisson", "sky": 10},
    "stored": "counts",
}


def psf_image():
    """A PSF of 15 x 15 pixels of 0.05 arcsec, wider along y and off the centre."""
    y, x = np.mgrid[-7:8, -7:8] * 0.05
    image = np.exp(-0.5 * ((x - 0.01) ** 2 + (y / 1.3) ** 2) / 0.08**2)
    return (image / image.sum()).astype(np.float32)


def survey(folder, **changes):
    """Return the population, with changes of its keys such as `psf={...}`, from files that are written to a folder."""
    np.save(folder / "psf.npy", psf_image())
    (folder / "survey.yaml").write_text(yaml.safe_dump(copy.deepcopy(TREE) | changes, sort_keys=False))
    return populations.get(str(folder / "survey.yaml"))
