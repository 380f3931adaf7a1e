"""Noise-free images from parameters, in batches: the forward model I(theta) = PSF * S(beta(theta))."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics import light, optics
from darklens.physics.profiles import PROFILES, line, shear, sie, sis
from darklens.physics.raytrace import PointsTerms, deflection_of_points, haloes_deflection, points_terms, source_plane
from darklens.populations import galaxies
from darklens.populations.light_models import ImageLight, SersicLight
from darklens.populations.population import Field2D, Population
from darklens.populations.psf_models import GaussianPSF, ImagePSF
from darklens.populations.scene_priors import ScenePriors
from darklens.populations.substructure_models import LineMass
from darklens.scene.imaging import Detector
from darklens.simulate.substructure import MASK_SUFFIX
from darklens.simulate.truth import Truth

Values = Mapping[str, Tensor]
"""Parameters of the lenses of a batch by the names of their columns, (b,) or (b, k)."""

Present = tuple[str, ...]
"""The kinds of substructure of a lens, by the prefixes of their columns."""

Terms = dict[str, tuple[Tensor, ...]]
"""Everything that does not depend on the pixel, by component."""


def render(
    population: Population,
    truth: "Truth | Values",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b n n"]:
    """Return noise-free images, without sky.

    Args:
        population: Its detector, point-spread function, lens and light.
        truth: Columns as `draw` returns them, b rows.
        dtype: float32 or float64.
        device: Where to compute.

    Returns:
        Brightness in counts (or rate) per pixel, (b, n, n).
    """
    value = {name: torch.as_tensor(column, dtype=dtype, device=device) for name, column in truth.items()}
    x, y = positions(population, dtype, torch.device(device))
    groups = group_by_substructure(value)
    if len(groups) == 1:
        (present,) = groups
        brightness = surface_brightness(population, present, scene_terms(population, present, value, x, y), x, y)
    else:
        brightness = x.new_empty(len(value["theta_E"]), y.shape[-2], x.shape[-1])
        for present, rows in groups.items():
            terms = scene_terms(population, present, {name: v[rows] for name, v in value.items()}, x, y)
            brightness[rows] = surface_brightness(population, present, terms, x, y)
    return observed(population, brightness)


def uses_detector(population: Population) -> bool:
    """Return whether light is sampled beyond the edges of the image, as the PSF requires, and convolved by FFT.

    Populations of a scene, and those with a PSF image, are. The others keep the images that they always had: there, no
    light falls on the image from beyond its edges.
    """
    return population.scene is not None or isinstance(population.psf, ImagePSF)


def detector_of(population: Population) -> Detector:
    """Return pixels and PSF of the population."""
    return _detector(population.field, population.psf)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must also serve in training
def _detector(field: Field2D, psf: GaussianPSF | ImagePSF) -> Detector:
    shape = (field.n_pixels, field.n_pixels)
    return Detector(shape, field.pixel_scale, psf.kernel(field.pixel_scale), supersample=field.supersample)


def positions(population: Population, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x (1, m) and y (m, 1) at which light is sampled, arcsec."""
    if uses_detector(population):
        return detector_of(population).positions(torch.empty(0, dtype=dtype, device=device))
    return axes(population.field, dtype, device)


def observed(population: Population, brightness: Float[Tensor, "b m m"]) -> Float[Tensor, "b n n"]:
    """Return the pixel values for brightness at `positions`."""
    if uses_detector(population):
        return detector_of(population).observe(brightness)
    pixels = optics.integrate_pixels(brightness, population.field.supersample)
    return optics.convolve_separable(pixels, psf_of(population))


def psf_of(population: Population) -> Float[Tensor, " taps"]:
    """Return the point-spread function of the population along one axis, in pixels."""
    psf, field = population.psf, population.field
    assert isinstance(psf, GaussianPSF)
    return optics.gaussian_psf(sigma=psf.sigma / field.pixel_scale, truncate=psf.truncate)


def group_by_substructure(value: Values) -> dict[Present, Tensor]:
    """Return the rows of the lenses of a batch for each combination of kinds of substructure."""
    masses = _MASSES | {name.removesuffix(MASK_SUFFIX): name for name in value if name.endswith(MASK_SUFFIX)}
    mask = {prefix: value[column] > 0 for prefix, column in masses.items() if column in value}
    present = {prefix: (v.any(1) if v.ndim == 2 else v).tolist() for prefix, v in mask.items()}
    rows: dict[Present, list[int]] = {}
    for i in range(len(value["theta_E"])):
        rows.setdefault(tuple(prefix for prefix in present if present[prefix][i]), []).append(i)
    return {kinds: torch.tensor(r, device=value["theta_E"].device) for kinds, r in rows.items()}


def scene_terms(population: Population, present: Present, value: Values, x: Tensor, y: Tensor) -> Terms:
    """Return the terms of `surface_brightness` that do not depend on the pixel.

    Args:
        population: Its lens and light.
        present: The kinds of substructure of these lenses, as `group_by_substructure` returns them.
        value: Columns as `draw` returns them.
        x: (1, m), arcsec.
        y: (m, 1), arcsec.
    """
    terms: Terms = {}
    for prefix in present:
        terms[prefix] = (
            _profile_terms(prefix, value) if is_profile(prefix) else _SUBSTRUCTURE[prefix][0](population, value, x, y)
        )
    if population.scene is not None:
        scene = population.scene.scene
        for name in population.scene.images:
            terms[name] = tuple(value[f"{name}.{column}"][:, None, None] for column in _CUTOUT)
        none = value["theta_E"][:, None][:, :0]
        packed, amplitudes = (
            torch.cat([none, *(value[name][:, None] for name in names)], 1)
            for names in (scene.names, scene.amplitude_names)
        )
        return terms | {"scene": (scene.complete(packed), amplitudes)}
    assert population.lens is not None
    p = {name: column[:, None, None] for name, column in value.items() if column.ndim == 1}
    smooth = ("theta_E",) if population.lens.is_round else ("theta_E", "e1", "e2")
    terms |= {"smooth": tuple(p[name] for name in smooth), "shear": (p["gamma1"], p["gamma2"])}
    for prefix, spec in (("source", population.source), ("light", population.lens_light)):
        if isinstance(spec, SersicLight):
            terms[prefix] = _sersic_terms(spec, p, prefix)
        elif spec:
            terms[prefix] = tuple(p[f"{prefix}_{column}"] for column in _CUTOUT)
    return terms


def surface_brightness(
    population: Population, present: Present, terms: Terms, x: Tensor, y: Tensor
) -> Float[Tensor, "b m m"]:
    """Return the brightness at image-plane positions, before pixel integration and PSF, from `scene_terms`."""
    alphas = _deflections(population, present, terms, x, y)
    if population.scene is not None:
        return _light_of_scene(population.scene, population.field, terms, x, y, alphas)
    beta_x, beta_y = source_plane(x, y, alphas)
    source = population.source
    assert source is not None
    brightness = (
        _sersic(terms["source"], beta_x, beta_y)
        if isinstance(source, SersicLight)
        else _galaxies(source, population.field, terms["source"], beta_x, beta_y)
    )
    return brightness + _sersic(terms["light"], x, y) if population.lens_light else brightness


def _light_of_scene(
    priors: ScenePriors, field: Field2D, terms: Terms, x: Tensor, y: Tensor, alphas: list[tuple[Tensor, Tensor]]
) -> Float[Tensor, "b m m"]:
    """Return the brightness of the profiles and the cut-outs of a scene."""
    complete, amplitudes = terms["scene"]
    (alpha_x, alpha_y), *others = alphas
    for other_x, other_y in others:
        alpha_x, alpha_y = alpha_x + other_x, alpha_y + other_y
    brightness = []
    if amplitudes.shape[1]:
        planes = priors.scene.lensed(complete, x, y, (alpha_x, alpha_y))
        brightness.append((planes * amplitudes[:, :, None, None]).sum(1))
    for name, spec in priors.images.items():
        at = (x - alpha_x, y - alpha_y) if name in priors.source else (x + 0 * alpha_x, y + 0 * alpha_y)
        brightness.append(_galaxies(spec, field, terms[name], *at))
    return torch.stack(brightness).sum(0) if len(brightness) > 1 else brightness[0]


def _deflections(
    population: Population, present: Present, terms: Terms, x: Tensor, y: Tensor
) -> list[tuple[Tensor, Tensor]]:
    perturbers = [
        _profile(prefix, terms[prefix], x, y) if is_profile(prefix) else _SUBSTRUCTURE[prefix][1](terms[prefix], x, y)
        for prefix in present
    ]
    if population.scene is not None:
        complete, _ = terms["scene"]
        alpha_x, alpha_y = population.scene.scene.deflection_planes(complete, x, y).unbind(1)
        return [(alpha_x, alpha_y), *perturbers]
    assert population.lens is not None
    smooth, (gamma1, gamma2) = terms["smooth"], terms["shear"]
    return [
        shear.deflection(x, y, gamma1=gamma1, gamma2=gamma2),
        sis.deflection(x, y, theta_E=smooth[0])
        if population.lens.is_round
        else sie.deflection(x, y, theta_E=smooth[0], e1=smooth[1], e2=smooth[2]),
        *perturbers,
    ]


def deflection(
    population: Population, truth: "Truth | Values", field: Field2D
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return alpha_x and alpha_y (arcsec) of lenses with their substructure, at the pixel centres of `field`.

    Args:
        population: Its lens.
        truth: Columns as `draw` returns them or a store contains them, b rows.
        field: The pixels; sub-pixels are ignored.
    """
    value = {name: torch.as_tensor(column, dtype=torch.float32) for name, column in truth.items()}
    x, y = field.grid.axes()
    out = torch.zeros(2, len(value["theta_E"]), field.n_pixels, field.n_pixels)
    for present, rows in group_by_substructure(value).items():
        terms = scene_terms(population, present, {name: v[rows] for name, v in value.items()}, x, y)
        for alpha_x, alpha_y in _deflections(population, present, terms, x, y):
            out[0, rows] += alpha_x
            out[1, rows] += alpha_y
    return out[0], out[1]


def _sersic_terms(spec: SersicLight, p: Values, prefix: str) -> tuple[Tensor, ...]:
    parameters = {name: p[f"{prefix}_{name}"] for name in ("amplitude", "R_e", "n", "q", "angle")}
    b = light.sersic_b_linear if spec.b_n == "linear" else light.sersic_b
    return p[f"{prefix}_x"], p[f"{prefix}_y"], *light.sersic_terms(b=b(parameters["n"]), **parameters)


def _sersic(terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
    centre_x, centre_y, *sersic_terms = terms
    return light.sersic_brightness(x - centre_x, y - centre_y, light.SersicTerms(*sersic_terms))


def _galaxies(spec: ImageLight, field: Field2D, terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
    """Return the brightness per pixel of the galaxy of each image at x, y (b, m, m)."""
    centre_x, centre_y, angle, amplitude, size, number = terms
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = x - centre_x, y - centre_y
    u, v = x * cos + y * sin, y * cos - x * sin
    paths = galaxies.files(spec)
    brightness = [
        light.image_brightness(
            galaxies.galaxy(paths[int(number[i])]), u[i], v[i], pixel_scale=spec.pixel_scale * size[i, 0, 0]
        )
        for i in range(len(u))
    ]
    return amplitude * torch.stack(brightness) * field.pixel_scale**2


def _point_terms(_: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return points_terms(x, y, theta_E=value["point_theta_E"], centre_x=value["point_x"], centre_y=value["point_y"])


def _points(terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return deflection_of_points(PointsTerms(*terms), (y.shape[-2], x.shape[-1]))


def _halo_terms(_: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    n_haloes = int((value["halo_alpha_Rs"] > 0).sum(1).max())  # further columns are padding
    return tuple(value[f"halo_{name}"][:, :n_haloes] for name in ("alpha_Rs", "R_s", "r_t", "x", "y"))


def _haloes(terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    alpha_Rs, R_s, r_t, centre_x, centre_y = terms
    return haloes_deflection(x, y, alpha_Rs=alpha_Rs, R_s=R_s, r_t=r_t, centre_x=centre_x, centre_y=centre_y)


def _line_terms(population: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    mass, centre_x, centre_y, length, angle = (value[f"line_{name}"] for name in ("mass", "x", "y", "length", "angle"))
    n_points = max(s.as_points for s in population.classes.values() if isinstance(s, LineMass))
    if n_points:
        offset = length[:, None] * torch.linspace(-0.5, 0.5, n_points, dtype=x.dtype, device=x.device)
        return points_terms(
            x,
            y,
            theta_E=(mass / n_points).sqrt()[:, None].expand_as(offset),
            centre_x=centre_x[:, None] + offset * torch.cos(angle)[:, None],
            centre_y=centre_y[:, None] + offset * torch.sin(angle)[:, None],
        )
    mass, centre_x, centre_y, length, angle = (v[:, None, None] for v in (mass, centre_x, centre_y, length, angle))
    return centre_x, centre_y, *line.terms(mass=mass, length=length, angle=angle)


def _lines(terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(terms) == len(PointsTerms._fields):
        return _points(terms, x, y)
    centre_x, centre_y, *line_terms = terms
    return line.deflection_from(x - centre_x, y - centre_y, line.LineTerms(*line_terms))


def is_profile(prefix: str) -> bool:
    """Return whether a prefix belongs to substructure of kind profile."""
    return prefix.startswith("profile_")


def _profile_terms(prefix: str, value: Values) -> tuple[Tensor, ...]:
    names = [p.symbol for p in PROFILES[prefix.removeprefix("profile_")].parameters]
    return tuple(value[f"{prefix}_{name}"] for name in (*names, "x", "y", MASK_SUFFIX[1:]))


def _profile(prefix: str, terms: tuple[Tensor, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    profile = PROFILES[prefix.removeprefix("profile_")]
    total_x, total_y = torch.zeros_like(x + y), torch.zeros_like(x + y)
    for i in range(terms[0].shape[1]):
        *parameters, centre_x, centre_y, mask = (term[:, i, None, None] for term in terms)
        values = {p.symbol: v for p, v in zip(profile.parameters, parameters, strict=True)}
        alpha = profile.deflection(x - centre_x, y - centre_y, **values)
        # The parameters of padding are zero, for which a law need not be finite.
        total_x = total_x + torch.where(mask > 0, alpha[0], 0.0)
        total_y = total_y + torch.where(mask > 0, alpha[1], 0.0)
    return total_x, total_y


_CUTOUT = ("x", "y", "angle", "amplitude", "size", "galaxy")
_MASSES = {"point": "point_theta_E", "halo": "halo_alpha_Rs", "line": "line_mass"}
_SUBSTRUCTURE = {"point": (_point_terms, _points), "halo": (_halo_terms, _haloes), "line": (_line_terms, _lines)}


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must also serve in training
def axes(field: Field2D, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x (1, n) and y (n, 1) in arcsec; terms of x or y alone are then one-dimensional."""
    return field.grid.axes(supersample=field.supersample, dtype=dtype, device=device)
