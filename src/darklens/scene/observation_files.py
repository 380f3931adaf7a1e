"""Reads observations from files: image, noise map, PSF and mask as files, extensions, datasets, or rows of stacks."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float

from darklens.data.image_stacks import location
from darklens.data.readers.planes import Contents, Plane, contents
from darklens.data.readers.roles import OBSERVATION_FILES, SCIENCE, Role, belongs, companion
from darklens.errors import ConfigError, InputError
from darklens.scene.noise_maps import standard_deviation
from darklens.scene.observation import Observation, PhotonNoise, background_scatter, require_pixels
from darklens.scene.observation_paths import member_of
from darklens.scene.observation_planes import NOISE_ROLES, plane_of, require_shape
from darklens.scene.psf import PSF
from darklens.scene.specification import NoiseSpecification, PSFSpecification

_MAX_OVERSAMPLING = 16
_SAME_SCALE = 0.01
_QUANTITIES = {"electron", "electron/s", "adu", "adu/s"}  # that EXPTIME and GAIN convert
_MAX_PIXELS = 300_000


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How observations are read, in addition to what their files say.

    Attributes:
        psf: File of the PSF, as `FILE` or `FILE[NAME]`; replaces that of the observation. The same for the others.
        noise_map: File of the noise map.
        mask: File of the mask; non-zero pixels are excluded.
        pixel_scale: arcsec; replaces that of the file.
        image: Name of the image in files with several images.
        flip_rows: Whether row 0 is at the top, as PyAutoLens writes files.
        psf_settings: Of the scene.
        noise: Of the scene.
        half_width: Half side of the central square to keep, arcsec.
    """

    psf: str | None = None
    noise_map: str | None = None
    mask: str | None = None
    pixel_scale: float | None = None
    image: str | None = None
    flip_rows: bool = False
    psf_settings: PSFSpecification = field(default_factory=PSFSpecification)
    noise: NoiseSpecification | None = None
    half_width: float | None = None

    def __post_init__(self) -> None:
        """Check that no input is given twice.

        Raises:
            ConfigError: If the PSF or the noise is given in two ways, or the pixel scale is not positive.
        """
        if self.psf and (self.psf_settings.file or self.psf_settings.fwhm):
            raise ConfigError("--psf and psf.file or psf.fwhm of the scene exclude each other; give one PSF.")
        if self.noise_map and self.noise:
            raise ConfigError("--noise-map and noise.* of the scene exclude each other; give one of them.")
        if self.pixel_scale is not None and not 0 < self.pixel_scale < math.inf:
            raise ConfigError(f"--pixel-scale must be positive (arcsec), got {self.pixel_scale}.")


def read_observation(label: str, inputs: Inputs | None = None) -> Observation:
    """Read an observation.

    Args:
        label: A folder, a file, or `FILE#i` for row i of a stack, from `find_observations`.
        inputs: Options.

    Returns:
        The observation; `changes` says what was assumed, converted and left out.

    Raises:
        InputError: If image, noise map, PSF, mask or pixel scale are missing or wrong; one sentence says which.
    """
    inputs = inputs or Inputs()
    try:
        return _Reader(label, inputs).read()
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(label) or label in text else f"{label}: {text}") from None


class _Reader:
    """Reads one observation and collects what it changes and assumes."""

    def __init__(self, label: str, inputs: Inputs) -> None:
        self.label, self.inputs = label, inputs
        self.path, self.row = location(label)
        self.changes: list[str] = []
        self.numbers: dict[str, float] = {}
        self.planes: list[Plane] = []

    def read(self) -> Observation:
        inputs = self.inputs
        science = self._science()
        pixels, stated, remarks = science.read()
        self.changes += remarks
        scale = self._scale(stated)
        mask = self._mask(science, pixels.shape)
        used = np.isfinite(pixels) if mask is None else np.isfinite(pixels) & ~mask
        noise = self._noise(science, pixels, used)
        psf = self._psf(science, scale)
        photon_noise = noise if isinstance(noise, PhotonNoise) else None
        arrays = [pixels, None if isinstance(noise, PhotonNoise) else noise, mask]
        if inputs.flip_rows:
            photon_noise = photon_noise.part(slice(None, None, -1), slice(None)) if photon_noise else None
            arrays = [None if array is None else array[::-1].copy() for array in arrays]
            self.changes.append("rows flipped")
        observation = Observation.of(
            arrays[0], noise_map=arrays[1], photon_noise=photon_noise, mask=arrays[2], pixel_scale=scale, psf=psf
        )
        if inputs.half_width is not None:
            observation = observation.cut(inputs.half_width)
            rows, columns = observation.image.shape
            if (rows, columns) != pixels.shape:
                self.changes.append(f"cut to the central {rows} x {columns} pixels")
            require_pixels(observation.used)
        if observation.image.size > _MAX_PIXELS:
            raise InputError(
                f"the image has {observation.image.shape[0]} x {observation.image.shape[1]} pixels; cut out the lens, "
                "or set half_width (arcsec) of the scene."
            )
        return replace(observation, changes=(*self.changes, *observation.changes))

    def _science(self) -> Plane:
        """Choose the science image, and collect the planes that belong to it."""
        if self.path.is_dir():
            for role in OBSERVATION_FILES:
                if (file := member_of(self.path, role)) is not None:
                    self._add(contents(file), role)
            if not any(plane.role == "science" for plane in self.planes):
                raise InputError("the folder has no image.fits or data.fits.")
        else:
            self._add(contents(self.path, row=self.row), None)
        name = self.inputs.image
        if name is not None:
            matches = [plane for plane in self.planes if name.lower() in (plane.name.lower(), plane.key)]
            if not matches:
                listed = ", ".join(plane.name or str(plane.key) for plane in self.planes[:8])
                raise InputError(f"it has no image {name!r}; it has {listed}.")
            return matches[0]
        science = [plane for plane in self.planes if plane.role == "science"]
        if not science:
            listed = ", ".join(map(str, self.planes[:8]))
            raise InputError(f"it holds no science image, only {listed}; select one with --image NAME if it is.")
        stack = [plane for plane in science if plane.row is not None]
        if stack:
            return min(stack, key=lambda plane: plane.name.lower() != "images")
        preferred = [p for name in SCIENCE for p in science if p.name.lower().rsplit("/", 1)[-1] == name]
        named = [plane for plane in science if plane.name]
        if preferred:
            return preferred[0]
        if len(science) > 1 and len(named) == len(science):
            listed = ", ".join(plane.name for plane in science[:8])
            raise InputError(f"it holds several images ({listed}); select one with --image NAME.")
        if len(science) > 1:
            numbers = ", ".join(str(plane.key) for plane in science[1:6])
            self.changes.append(f"image: header unit {science[0].key} (units {numbers} not used)")
        return science[0]

    def _add(self, content: Contents, role: Role | None) -> None:
        planes = list(content.planes)
        if role is not None and len(planes) == 1:
            kept = planes[0].role in NOISE_ROLES and role in NOISE_ROLES
            planes = [planes[0] if kept else replace(planes[0], role=role)]
        elif role is not None:
            planes = [p for p in planes if p.role == role or (role in NOISE_ROLES and p.role in NOISE_ROLES)]
        self.planes += planes
        for key, value in content.numbers.items():
            self.numbers.setdefault(key, value)

    def _scale(self, stated: float | None) -> float:
        requested = self.inputs.pixel_scale
        if stated is None:
            stated = self.numbers.get("pixel_scale")
        if requested is None and stated is None:
            raise InputError("the file states no pixel scale; give it in arcsec with --pixel-scale.")
        if requested is not None and stated is not None and abs(requested / stated - 1) > _SAME_SCALE:
            self.changes.append(f"pixel scale of {requested:g} arcsec as requested; the file states {stated:.4g}")
        scale = stated if requested is None else requested
        assert scale is not None
        return scale

    def _requested(self) -> str:
        return " (--pixel-scale)" if self.inputs.pixel_scale is not None else ""

    def _companion(self, science: Plane, roles: Sequence[Role]) -> Plane | None:
        """Return the plane of the first of some roles that belongs to the science image."""
        for role in roles:
            planes = [plane for plane in self.planes if plane.role == role and plane != science]
            name = companion(science.name, [plane.name for plane in planes])
            if name is not None:
                return next(plane for plane in planes if plane.name == name)
        return None

    def _mask(self, science: Plane, shape: tuple[int, ...]) -> Bool[np.ndarray, "rows columns"] | None:
        plane = self._option(self.inputs.mask, "mask", science) or self._companion(science, ["mask"])
        if plane is None:
            return None
        self._note_replaced(plane, self._companion(science, ["mask"]))
        values = plane.read()[0]
        require_shape("the mask", values.shape, shape)
        mask: Bool[np.ndarray, "rows columns"] = ~(values == 0)
        if mask.all():
            raise InputError(f"the mask {plane} excludes every pixel; non-zero excludes a pixel, zero keeps it.")
        return mask

    def _noise(
        self, science: Plane, pixels: Float[np.ndarray, "rows columns"], used: Bool[np.ndarray, "rows columns"]
    ) -> Float[np.ndarray, "rows columns"] | PhotonNoise:
        option = self._option(self.inputs.noise_map, "noise", science)
        plane = option or self._companion(science, NOISE_ROLES)
        exposure = self._companion(science, ["exposure"])
        if plane is None:
            return self._modelled_noise(science, exposure, pixels, used)
        if self.inputs.noise is not None:
            raise InputError(f"both a noise map ({plane}) and noise.* of the scene are given; remove one of them.")
        unused = [p for p in self.planes if p.role in NOISE_ROLES and p not in (plane, science)]
        for other in [p for p in unused if belongs(p.name, science.name)]:
            self.changes.append(f"{other} not used: the noise is that of {plane}")
        if exposure is not None:
            self.changes.append(f"{exposure} not used: the noise map includes photon noise")
        noise, scale, _ = plane.read()
        if scale is not None and self.inputs.pixel_scale is None and noise.shape != pixels.shape:
            self.changes.append(f"noise map: pixels of {scale:.4g} arcsec")
        require_shape("the noise map", noise.shape, pixels.shape)
        if np.array_equal(noise, pixels, equal_nan=True):
            raise InputError(f"the noise map {plane} is the image itself; select another with FILE[NAME].")
        if plane.role not in ("variance", "weight"):
            noise = self._in_unit(plane, noise, science.unit)
        noise, _, changes = standard_deviation(plane, noise, pixels, used)
        self.changes += changes
        return noise

    def _in_unit(self, plane: Plane, noise: np.ndarray, unit: str) -> np.ndarray:
        """Convert a noise map to the unit of the image, where both are stated and differ."""
        ours, theirs = _quantity(unit), _quantity(plane.unit)
        if not unit or not plane.unit or ours == theirs:
            return noise
        factor = self._electrons(theirs)
        divisor = self._electrons(ours)
        if factor is None or divisor is None:
            missing = [
                key for key, value in (("EXPTIME", "exposure_time"), ("GAIN", "gain")) if value not in self.numbers
            ]
            is_known = missing and {ours, theirs} <= _QUANTITIES
            reason = f", and the header has no {' and '.join(missing)}" if is_known else ""
            raise InputError(
                f"the image is in {unit}, the noise map in {plane.unit}{reason}; convert one to the other."
            )
        self.changes.append(f"noise map converted from {plane.unit} to {unit}")
        return noise * (factor / divisor)

    def _electrons(self, quantity: str) -> float | None:
        """Return the number of electrons in one unit of a quantity; None if unknown."""
        time, gain = self.numbers.get("exposure_time"), self.numbers.get("gain")
        electrons = {"electron": 1.0, "electron/s": time, "adu": gain}
        return electrons.get(quantity, gain * time if quantity == "adu/s" and gain and time else None)

    def _modelled_noise(
        self,
        science: Plane,
        exposure: Plane | None,
        pixels: Float[np.ndarray, "rows columns"],
        used: Bool[np.ndarray, "rows columns"],
    ) -> Float[np.ndarray, "rows columns"] | PhotonNoise:
        """Return the noise of the background and the photons, if there is no noise map."""
        sigma = self.numbers.get("noise", self.numbers.get("sigma"))
        if sigma is not None and self.inputs.noise is None:
            return np.full(pixels.shape, sigma)
        stated = "background_rms" in self.numbers and (exposure is not None or "exposure_time" in self.numbers)
        if self.inputs.noise is None and not stated:
            advice = ", or give the folder, which holds one" if self._has_siblings() else ""
            raise InputError(
                "there is no noise map; give one with --noise-map, or noise.exposure=... (counts per unit of the "
                f"image, for photon noise) or noise.background_rms=... (otherwise measured){advice}."
            )
        settings = self.inputs.noise or NoiseSpecification()
        background = settings.background_rms or self.numbers.get("background_rms")
        if background is None:
            measured = background_scatter(pixels, used)
            if measured is None:
                raise InputError("the noise of the background cannot be measured; give noise.background_rms.")
            background = measured[0]
            self.changes.append(f"background noise of {background:.3g} measured from the image")
        counts: float | np.ndarray | None = settings.exposure
        words = "noise.exposure"
        if counts is not None and exposure is not None:
            raise InputError(f"both an exposure map ({exposure}) and noise.exposure are given; remove one of them.")
        if exposure is not None:
            counts, words = exposure.read()[0], str(exposure)
            require_shape("the exposure map", counts.shape, pixels.shape)
        if counts is None and science.unit:
            counts, words = self._electrons(_quantity(science.unit)), f"the unit {science.unit}"
        if counts is None and stated:
            counts, words = self.numbers["exposure_time"], "exposure_time"
        if counts is None:
            self.changes.append("constant noise: no exposure is known, so there is no photon noise")
            return np.full(pixels.shape, float(background))
        self.changes.append(f"noise of background (rms {background:.3g}) and photons ({words})")
        return PhotonNoise(float(background), counts)

    def _has_siblings(self) -> bool:
        return not self.path.is_dir() and all(member_of(self.path.parent, role) for role in ("science", "noise"))

    def _psf(self, science: Plane, scale: float) -> PSF | None:
        settings = self.inputs.psf_settings
        if settings.fwhm is not None:
            if self._companion(science, ["psf"]) is not None:
                self.changes.append("PSF image not used: psf.fwhm is")
            return PSF.gaussian(fwhm=settings.fwhm, pixel_scale=scale, oversampling=settings.oversampling or 1)
        plane = self._option(self.inputs.psf or settings.file, "psf", science) or self._companion(science, ["psf"])
        if plane is None:
            self.changes.append("no PSF: no blurring assumed")
            return None
        self._note_replaced(plane, self._companion(science, ["psf"]))
        values, stated, _ = plane.read()
        if any(side % 2 == 0 for side in values.shape):
            self.changes.append(f"PSF: {values.shape[0]} x {values.shape[1]} pixels, origin at the centre of the array")
        if self.inputs.flip_rows:
            values = values[::-1].copy()
        return PSF.image(
            values,
            pixel_scale=scale,
            oversampling=self._oversampling(stated, scale),
            normalise=settings.normalise,
            recentre=settings.recentre,
        )

    def _oversampling(self, stated: float | None, scale: float) -> int:
        """Return the oversampling of the PSF, from its pixel scale if that is stated."""
        requested = self.inputs.psf_settings.oversampling
        if stated is None:
            return requested or 1
        ratio = scale / stated
        factor = max(1, round(ratio))
        if requested is not None and abs(ratio / requested - 1) > _SAME_SCALE:
            raise InputError(
                f"the PSF has pixels of {stated:.4g} arcsec, which does not agree with psf.oversampling={requested} "
                f"for an image of {scale:.4g} arcsec."
            )
        if factor > _MAX_OVERSAMPLING or abs(ratio / factor - 1) > _SAME_SCALE:
            raise InputError(
                f"the PSF has pixels of {stated:.4g} arcsec, the image {scale:.4g}{self._requested()}; resample the "
                "PSF to the pixels of the image, or to a whole number of them."
            )
        if factor > 1 and requested is None:
            self.changes.append(f"PSF: {factor} x {factor} of its pixels in one of the image")
        return factor

    def _note_replaced(self, plane: Plane, other: Plane | None) -> None:
        if other is not None and other != plane:
            self.changes.append(f"{other} not used: {plane} is")

    def _option(self, text: str | None, role: Role, science: Plane) -> Plane | None:
        return None if text is None else plane_of(text, role, science=science.name, row=self.row)


def _quantity(unit: str) -> str:
    """Return the quantity of a unit: electron, electron/s, adu, adu/s, or the unit in lower case."""
    text = re.sub(r"\s+", "", unit.lower())
    rate = bool(re.search(r"(/s(ec(ond)?)?s?|s(ec)?(-1|\^-1|\*\*-1)|cps)$", text))
    base = re.sub(r"(/s(ec(ond)?)?s?|\.?s(ec)?(-1|\^-1|\*\*-1))$", "", text)
    if re.fullmatch(r"e-?|electrons?|counts?|photons?|ph|cps|el", base):
        return "electron/s" if rate else "electron"
    if re.fullmatch(r"adu|dn|digitalnumbers?", base):
        return "adu/s" if rate else "adu"
    return text
