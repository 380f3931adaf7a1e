"""Which of the images of a file is the science image: weight maps, masks and PSFs are told apart by their names."""

import re
from collections.abc import Sequence

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
