"""Which of the images of a file is the science image: weight maps, masks and PSFs are told apart by their names."""

import re
from collections.abc import Sequence
from typing import Literal

SCIENCE = ("image", "image_data", "sci", "science", "image_science", "data", "img")  # in the order of preference
_AUXILIARY = re.compile(
    r"wht|wgt|weights?|weightmap|err|errors?|errormap|uncert|uncertainty|sigma|sigmamap|std|stdev|stddev|rms|rmsmap|"
    r"i(nv)?var|invvar|var|variance|cov|covariance|noise|noisemap|dq|masks?|msk|flags?|quality|badpix|bpm|bad|conf|"
    r"confidence|psfs?|prf|kernel|ctx|con|context|coverage|samp|exp|expmap|exposure|exptime|time|nim|nexp|"
    r"bkg|background|seg|segm|segmap|segmentation|residuals?"
)
_FOLDERS = re.compile(r"wht|weights?|err|errors?|noise|masks?|dq|psfs?|kernel|var|variance|flags")
_QUALIFIERS = frozenset(["with", "without", "no", "non", "free", "sub", "subtracted", "plus", "and"])  # sky_subtracted


def is_auxiliary(name: str) -> bool:
    """Return whether a name is that of a weight map, noise map, mask, PSF or other map that is no science image.

    The name may be a path: a dataset in a group `noise` is a noise map.
    """
    *folders, base = [_words(part) for part in name.split("/") if part] or [[]]
    if not _QUALIFIERS & set(base) and any(map(_AUXILIARY.fullmatch, base)):
        return True
    return any(len(words) == 1 and _FOLDERS.fullmatch(words[0]) for words in folders)


def is_science(name: str) -> bool:
    """Return whether a name says that it is the science image."""
    return _joined(name) in SCIENCE


def science_names(names: Sequence[str]) -> list[str]:
    """Return the names of the images that may be the science image: one, if its name says so or no other is left."""
    candidates = [name for name in names if not is_auxiliary(name)]
    for preferred in SCIENCE:
        matches = [name for name in candidates if _joined(name) == preferred]
        if len(matches) == 1:
            return matches
        exact = [name for name in matches if name.lower() == preferred]
        if exact:
            return exact
    return candidates


def _joined(name: str) -> str:
    return "_".join(_words(name.rsplit("/", 1)[-1]))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers: `VAR_POISSON`, `noiseMap` and `ERR2` have var, err."""
    separated = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z]+", separated.lower())


Role = Literal["science", "noise", "variance", "weight", "mask", "psf", "exposure", "other"]
OBSERVATION_FILES: dict[Role, tuple[str, ...]] = {  # in a folder of one observation, in the order of preference
    "science": ("image", "data"),
    "noise": ("noise_map", "noise", "rms", "err"),
    "weight": ("weight_map", "weight", "wht", "ivm"),
    "psf": ("psf",),
    "mask": ("mask",),
    "exposure": ("exposure_time_map", "exposure_map", "exposure"),
}
OBSERVATION_SUFFIXES = (".fits", ".fits.gz", ".fits.fz", ".fit", ".fts")
_ROLES: dict[Role, re.Pattern[str]] = {  # in the order of precedence
    "psf": re.compile(r"psfs?|prf|kernel"),
    "mask": re.compile(r"masks?|msk|bpm|badpix"),
    "exposure": re.compile(r"exp|expmap|exposure|exptime"),
    "weight": re.compile(r"wht|wgt|weights?|weightmap|ivm|ivar|invvar"),
    "variance": re.compile(r"var|variance"),
    "noise": re.compile(
        r"err|errors?|errormap|uncert|uncertainty|sigma|sigmamap|std|stdev|stddev|rms|rmsmap|noise|noisemap"
    ),
}
_GENERIC = frozenset(["map", "image", "images", "data", "point", "source", "inv", "inverse", "array", "time"])


def role_of(name: str) -> Role:
    """Return the role of an image in an observation, by its name, which may be a path."""
    words = set(_words(name))
    if _QUALIFIERS & words:
        return "science"
    roles = [role for role, pattern in _ROLES.items() if any(map(pattern.fullmatch, words))]
    if not roles:
        return "other" if is_auxiliary(name) else "science"
    if roles[0] == "psf" and len(roles) > 1:  # the variance of a PSF
        return "other"
    return "weight" if roles[0] == "variance" and {"inv", "inverse"} & words else roles[0]


def role_in_folder(name: str) -> Role | None:
    """Return the role that a file has in a folder of one observation, by its name; None for other files."""
    lower = name.lower()
    stem = next((lower.removesuffix(suffix) for suffix in OBSERVATION_SUFFIXES if lower.endswith(suffix)), None)
    return next((role for role, stems in OBSERVATION_FILES.items() if stem in stems), None)


def belongs(name: str, science: str) -> bool:
    """Return whether a plane is of the same band as a science image, by their names."""
    return _band(name) <= set(_words(science))


def companion(science: str, names: Sequence[str]) -> str | None:
    """Return the name of the plane that belongs to a science image: `VIS_RMS` to `VIS_BGSUB`; None if unclear.

    Args:
        science: Name of the science image.
        names: Names of the planes with the role.
    """
    if len(names) == 1:
        return names[0]
    words = set(_words(science))
    shared = {name: _band(name) & words for name in names if belongs(name, science)}
    best = [name for name in shared if len(shared[name]) == max(map(len, shared.values()))]
    return best[0] if len(best) == 1 else None


def _band(name: str) -> set[str]:
    """Return the words of a name that say neither its role nor that it is an image: those of a band."""
    words = set(_words(name)) - _GENERIC
    return {word for word in words if not any(pattern.fullmatch(word) for pattern in _ROLES.values())}
