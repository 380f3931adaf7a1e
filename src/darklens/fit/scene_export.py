"""Fits of scenes as keyword arguments of lenstronomy, and in the COOLEST standard (Galan et al. 2023, JOSS 8, 5567)."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from darklens.errors import ConfigError
from darklens.files import atomic_path, write_json
from darklens.fit.source_plane import grid_spacing, source_extent, source_square
from darklens.physics.light import sersic_b
from darklens.scene.light_profiles import MultiGaussian, Sersic, Shapelets
from darklens.scene.mass_profiles import Multipole, Shear
from darklens.scene.profile import Profile
from darklens.scene.source_grid import SourceGrid

if TYPE_CHECKING:
    from darklens.fit.fit_result import FitResult

Values = Mapping[str, float]
_UNUSED_NOISE = 1e8  # of excluded pixels
_PIXELS_PER_NODE, _LARGEST_IMAGE = 6, 600  # of the image of a source grid
_GRID = "PixelatedRegularGrid"  # light profile of COOLEST
_ALIGNED = 1e-6  # of an ellipticity with the x axis


def to_lenstronomy(result: "FitResult") -> dict[str, Any]:
    """Return model lists and keyword arguments of lenstronomy (1.12 or newer) that render the image of a fit.

    Keys: `lens_model_list`, `source_light_model_list`, `lens_light_model_list`, `kwargs_lens`, `kwargs_source`,
    `kwargs_lens_light`. Amplitudes are per square arcsec, as lenstronomy needs them, so that its image has the unit of
    the observation. The cores that a fit gives Sersic profiles, a tenth of a sample, are left out, which changes the
    pixel at the centre of a cusp. A source grid becomes an image (INTERPOL), between whose pixels lenstronomy
    interpolates linearly; delete the cache of that profile before you render another fit with the same model.

    Raises:
        ConfigError: If lenstronomy has no such profile: a line, or multipoles of a lens that is not elongated along x,
            which it does not rotate.
    """
    scene = result.scene
    roles: dict[str, Any] = {"lens": scene.mass, "source": scene.source, "lens_light": scene.lens_light}
    exported: dict[str, Any] = {}
    for role, model in roles.items():
        members = _members(result, model.profiles)
        entries = [_lenstronomy(name, profile, values, result) for name, profile, values in members]
        models = "lens_model_list" if role == "lens" else f"{role}_model_list".replace("source_", "source_light_")
        exported[models], exported[f"kwargs_{role}"] = [k for k, _ in entries], [v for _, v in entries]
    return exported


def to_coolest(result: "FitResult", *, z_lens: float | None, z_source: float | None) -> dict[str, Any]:
    """Return a fit as the content of a COOLEST template (mode MAP), to be written as JSON.

    Angles are in degrees from y towards negative x (east of north), radii are those along the intermediate axis, and
    amplitudes are per square arcsec. Sersic profiles have the b_n of COOLEST, 1.9992 n - 0.3271. A source grid is an
    image (PixelatedRegularGrid) of the surface brightness per pixel of the observation. This image, data, noise map and
    PSF are files, which `write_coolest` adds.

    Args:
        result: The fit.
        z_lens: Redshift of the lens, if known.
        z_source: Redshift of the source, if known.

    Raises:
        ConfigError: If there is no such profile; there are SIE, EPL, shear, Sersic, shapelets and source grids.
    """
    scene, observation = result.scene, result.observation
    mass = _members(result, scene.mass.profiles)
    fields = [entry for entry in mass if isinstance(entry[1], Shear)]
    lens = [entry for entry in mass if not isinstance(entry[1], Shear)]
    entities: list[dict[str, Any]] = []
    for name, profile, values in fields:
        entities.append(_entity("MassField", name, z_lens, {"mass_model": [_coolest(name, profile, values, result)]}))
    light = {
        "light_model": [_coolest(*entry, result) for entry in _members(result, scene.lens_light.profiles)],
        "mass_model": [_coolest(*entry, result) for entry in lens],
    }
    entities.append(_entity("Galaxy", "lens", z_lens, light))
    source = [_coolest(*entry, result) for entry in _members(result, scene.source.profiles)]
    entities.append(_entity("Galaxy", "source", z_source, {"light_model": source, "mass_model": []}))
    for number, entity in enumerate(entities):
        _add_identifiers(number, entity)
    return {
        "standard": "COOLEST",
        "mode": "MAP",
        "coordinates_origin": {"ra": "00h00m00s", "dec": "+00d00m00s"},
        "cosmology": None,
        "instrument": {
            "name": "",
            "band": "",
            "pixel_size": observation.pixel_scale,
            "readout_noise": 0.0,
            "psf": {"type": None, "description": None},
        },
        "observation": {
            "pixels": _grid(observation.image.shape, observation.pixel_scale, None),
            "noise": {"type": None},
            "exposure_time": None,
            "mag_zero_point": None,
            "mag_sky_brightness": None,
        },
        "lensing_entities": entities,
        "likelihoods": None,
        "meta": {"chi2_per_pixel": result.chi2_per_pixel, "converged": result.converged},
    }


def write_coolest(result: "FitResult", path: Path, *, z_lens: float | None, z_source: float | None) -> dict[str, Any]:
    """Write a fit as a COOLEST template, with image, noise map and PSF beside it, and return its content.

    Args:
        result: The fit.
        path: JSON file to write. For `lens.json` the others are lens_image.fits, lens_noise_map.fits, lens_psf.fits
            and, with a source grid, lens_source.fits.
        z_lens: Redshift of the lens, if known.
        z_source: Redshift of the source, if known.

    Raises:
        ConfigError: As for `to_coolest`.
        InputError: If a file cannot be written.
    """
    template, observation = to_coolest(result, z_lens=z_lens, z_source=z_source), result.observation
    names = {kind: f"{path.stem}_{kind}.fits" for kind in ("image", "noise_map", "psf", "source")}
    shape, scale = observation.image.shape, observation.pixel_scale
    _write_fits(path.with_name(names["image"]), observation.image)
    _write_fits(path.with_name(names["noise_map"]), np.where(observation.used, observation.noise_map, _UNUSED_NOISE))
    template["observation"]["pixels"] = _grid(shape, scale, names["image"])
    template["observation"]["noise"] = {"type": "NoiseMap", "noise_map": _grid(shape, scale, names["noise_map"])}
    psf = observation.psf
    if psf is not None:
        kernel = psf.kernel.numpy()
        _write_fits(path.with_name(names["psf"]), kernel)
        pixels = _grid(kernel.shape, psf.pixel_scale, names["psf"])
        template["instrument"]["psf"] = {"type": "PixelatedPSF", "description": None, "pixels": pixels}
    for profile in template["lensing_entities"][-1]["light_model"]:
        if profile["type"] == _GRID:
            _write_fits(path.with_name(names["source"]), source_square(result, _side_of_image(result)))
            profile["parameters"]["pixels"]["fits_file"]["path"] = names["source"]
    write_json(path, template)
    return template


def _write_fits(path: Path, image: Float[np.ndarray, "rows columns"]) -> None:
    from astropy.io import fits

    with atomic_path(path) as temporary:
        fits.writeto(temporary, image, overwrite=True)


def _grid(
    shape: tuple[int, ...], pixel_scale: float, file: str | None, *, centre: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Return a grid of pixels in a file; its field of view ends at the outer edges of its pixels, arcsec."""
    (x, y), (half_x, half_y) = centre, (n * pixel_scale / 2 for n in (shape[1], shape[0]))
    return {
        "field_of_view_x": [x - half_x, x + half_x],
        "field_of_view_y": [y - half_y, y + half_y],
        "fits_file": {"path": file},
        "num_pix_x": shape[1],
        "num_pix_y": shape[0],
    }


def _members(result: "FitResult", profiles: Sequence[Profile]) -> list[tuple[str, Profile, Values]]:
    scene = result.scene
    names = [name for name, p in scene.profiles.items() if p in profiles]
    return [(name, scene.profiles[name], scene.values_of(name, result.parameters)) for name in names]


def _amplitudes(name: str, result: "FitResult") -> list[float]:
    """Return the amplitudes of a component per square arcsec."""
    area = result.observation.pixel_scale**2
    return [value / area for key, value in result.amplitudes.items() if key.rpartition(".")[0] == name]


def _linear_sersic(profile: Sersic, values: Values, amplitude: float) -> tuple[float, float]:
    """Return amplitude and radius of the same profile with b_n = 1.9992 n - 0.3271."""
    n, linear = values["n"], 1.9992 * values["n"] - 0.3271
    b = linear if profile.b_n == "linear" else float(sersic_b(torch.tensor(n, dtype=torch.float64)))
    return amplitude * math.exp(b - linear), values["R_e"] * (linear / b) ** n


# --------------------------------------------------------------------------- lenstronomy


def _lenstronomy(name: str, profile: Profile, v: Values, result: "FitResult") -> tuple[str, dict[str, Any]]:
    if isinstance(profile, Sersic):
        amplitude, radius = _linear_sersic(profile, v, _amplitudes(name, result)[0])
        shape = {"amp": amplitude, "R_sersic": radius, "n_sersic": v["n"], "e1": v["e1"], "e2": v["e2"]}
        return "SERSIC_ELLIPSE", shape | _centre(v)
    if isinstance(profile, Shapelets):
        amplitudes = [value / v["beta"] for value in _amplitudes(name, result)]
        return "SHAPELETS", {"amp": amplitudes, "n_max": profile.n_max, "beta": v["beta"]} | _centre(v)
    if isinstance(profile, MultiGaussian):
        sigmas = profile.sigmas.tolist()
        fluxes = [a * 2 * math.pi * sigma**2 for a, sigma in zip(_amplitudes(name, result), sigmas, strict=True)]
        return "MULTI_GAUSSIAN_ELLIPSE", {"amp": fluxes, "sigma": sigmas, "e1": v["e1"], "e2": v["e2"]} | _centre(v)
    if isinstance(profile, Multipole):
        return _lenstronomy_multipole(name, profile, v)
    if isinstance(profile, SourceGrid):
        return "INTERPOL", _lenstronomy_image(result)
    if profile.kind not in _LENSTRONOMY:
        raise ConfigError(f"lenstronomy has no profile for {name} ({profile.kind}).")
    return _LENSTRONOMY[profile.kind](v)


def _side_of_image(result: "FitResult") -> int:
    """Return the number of pixels along a side of the image of a source grid."""
    _, _, half_width = source_extent(result)
    return min(math.ceil(2 * half_width / grid_spacing(result) * _PIXELS_PER_NODE), _LARGEST_IMAGE)


def _lenstronomy_image(result: "FitResult") -> dict[str, Any]:
    """Return the source as an image with several pixels between the nodes of its grid."""
    x, y, half_width = source_extent(result)
    n = _side_of_image(result)
    image, area = source_square(result, n), result.observation.pixel_scale**2
    return {
        "image": image / area,
        "amp": 1.0,
        "center_x": x,
        "center_y": y,
        "phi_G": 0.0,
        "scale": 2 * half_width / n,
    }


def _centre(v: Values) -> dict[str, float]:
    return {"center_x": v["centre_x"], "center_y": v["centre_y"]}


def _lenstronomy_multipole(name: str, profile: Multipole, v: Values) -> tuple[str, dict[str, Any]]:
    e = math.hypot(v["e1"], v["e2"])
    if abs(v["e2"]) > _ALIGNED or v["e1"] < -_ALIGNED:
        raise ConfigError(
            f"{name}: lenstronomy does not rotate elliptical multipoles; it can describe those of lenses along x only."
        )
    amplitude, phase = math.hypot(v["a"], v["b"]), math.atan2(v["b"], v["a"]) / profile.m
    q = (1 - e) / (1 + e)
    return "MULTIPOLE_ELL", {"m": profile.m, "a_m": amplitude, "phi_m": phase, "q": q, "r_E": 1.0} | _centre(v)


_LENSTRONOMY: dict[str, Callable[[Values], tuple[str, dict[str, Any]]]] = {
    "sis": lambda v: ("SIS", {"theta_E": v["theta_E"]} | _centre(v)),
    "sie": lambda v: ("EPL", {"theta_E": v["theta_E"], "gamma": 2.0, "e1": v["e1"], "e2": v["e2"]} | _centre(v)),
    "epl": lambda v: ("EPL", {"theta_E": v["theta_E"], "gamma": v["slope"], "e1": v["e1"], "e2": v["e2"]} | _centre(v)),
    "shear": lambda v: ("SHEAR", {"gamma1": v["gamma1"], "gamma2": v["gamma2"], "ra_0": 0.0, "dec_0": 0.0}),
    "nfw": lambda v: ("NFW", {"Rs": v["R_s"], "alpha_Rs": v["alpha_Rs"]} | _centre(v)),
    "tnfw": lambda v: ("TNFW", {"Rs": v["R_s"], "alpha_Rs": v["alpha_Rs"], "r_trunc": v["r_t"]} | _centre(v)),
    "pseudo_jaffe": lambda v: (
        "PJAFFE",
        {"sigma0": v["theta_E"] * (v["R_s"] - v["R_a"]) / (2 * v["R_a"] * v["R_s"]), "Ra": v["R_a"], "Rs": v["R_s"]}
        | _centre(v),
    ),
    "point": lambda v: ("POINT_MASS", {"theta_E": v["theta_E"]} | _centre(v)),
}


# --------------------------------------------------------------------------- COOLEST


def _coolest(name: str, profile: Profile, v: Values, result: "FitResult") -> dict[str, Any]:
    if isinstance(profile, Shear):
        strength = math.hypot(v["gamma1"], v["gamma2"])
        return _template("ExternalShear", {"gamma_ext": strength, "phi_ext": _angle(v["gamma1"], v["gamma2"])})
    if isinstance(profile, Sersic):
        amplitude, radius = _linear_sersic(profile, v, _amplitudes(name, result)[0])
        return _template("Sersic", {"I_eff": amplitude, "theta_eff": radius, "n": v["n"]} | _shape(v) | _centre(v))
    if isinstance(profile, Shapelets):
        amplitudes = [value / v["beta"] for value in _amplitudes(name, result)]
        return _template("Shapelets", {"n_max": profile.n_max, "beta": v["beta"], "amps": amplitudes} | _centre(v))
    if profile.kind in ("sis", "sie"):
        return _template("SIE", {"theta_E": v["theta_E"]} | _shape(v) | _centre(v))
    if profile.kind == "epl":
        return _template("PEMD", {"gamma": v["slope"], "theta_E": v["theta_E"]} | _shape(v) | _centre(v))
    if isinstance(profile, SourceGrid):
        x, y, half_width = source_extent(result)
        n = _side_of_image(result)
        return {"type": _GRID, "parameters": {"pixels": _grid((n, n), 2 * half_width / n, None, centre=(x, y))}}
    raise ConfigError(f"COOLEST has no profile for {name} ({profile.kind}).")


def _shape(v: Values) -> dict[str, float]:
    e1, e2 = v.get("e1", 0.0), v.get("e2", 0.0)
    e = math.hypot(e1, e2)
    return {"q": (1 - e) / (1 + e), "phi": _angle(e1, e2)}


def _angle(along: float, across: float) -> float:
    """Return the position angle, degrees from y towards negative x, of the axis of a spin-2 quantity."""
    angle = math.degrees(math.atan2(across, along)) / 2 - 90
    return angle if angle > -90 else angle + 180


def _template(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    empty = dict.fromkeys(("mean", "median", "percentile_16th", "percentile_84th"))
    parameters = {
        key: {
            "fixed": key == "n_max",
            "point_estimate": {"value": value},
            "posterior_stats": dict(empty),
            "prior": {"type": None},
        }
        for key, value in values.items()
    }
    return {"type": kind, "parameters": parameters}


def _entity(kind: str, name: str, redshift: float | None, models: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "name": name, "redshift": redshift, **models}


def _add_identifiers(number: int, entity: dict[str, Any]) -> None:
    for model in ("mass_model", "light_model"):
        for i, profile in enumerate(entity.get(model, [])):
            kind = model.removesuffix("_model")
            profile["id"] = f"{number}-{entity['type'].lower()}-{kind}-{i}-{profile['type']}"
            for key, parameter in profile["parameters"].items():
                parameter["id"] = f"{profile['id']}-{key}"
