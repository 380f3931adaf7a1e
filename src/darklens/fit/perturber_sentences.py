"""Sentences on a search for perturbers: its threshold with the rate of false alarms, and what its masses rest on."""

from darklens.fit.perturber_profiles import DEFAULT_THRESHOLD
from darklens.fit.perturber_table import SearchOptions

_HALO = "truncated NFW halo (dark subhalo)"
_PERTURBERS = {"tnfw": _HALO, "tnfw_free": f"{_HALO} of free concentration", "point": "point mass", "line": "line mass"}
_FALSE_ALARMS = "About 10 % of smooth lenses exceed it if the model is right (60 simulated lenses)."
_CHOICE = "This threshold is a choice; its rate of false alarms has not been measured."


def threshold_sentences(options: SearchOptions) -> str:
    """Return what is searched, the threshold, and its rate of false alarms."""
    kind = _PERTURBERS[options.perturber]
    where = "delta chi2, divided by chi2 per pixel where that is above one, exceeds"
    caution = (
        "No threshold includes errors of the model: repeat a search with other scenes before you claim a detection."
    )
    if options.simulations is not None:
        text = (
            f"the threshold of its lens. {options.simulations} simulated smooth lenses give it, for 10 % false alarms."
        )
    elif options.threshold is not None:
        text = f"{options.threshold:g}. This threshold was given; its rate of false alarms is not known."
    else:
        rate = _FALSE_ALARMS if options.perturber == "tnfw" else _CHOICE
        text = f"{DEFAULT_THRESHOLD[options.perturber]:g}. {rate}"
    return f"Perturber: {kind}. It is detected where {where} {text} {caution}"


def mass_sentence(options: SearchOptions) -> str:
    """Return on which redshifts and concentration the masses rest."""
    redshifts = options.redshifts
    text = f"for z_lens = {redshifts.z_lens:g} and z_source = {redshifts.z_source:g}"
    if options.perturber in ("point", "line"):
        return f"Masses are total masses in M_sun {text}."
    if options.perturber == "tnfw_free":
        concentration = "is free"
    elif redshifts.concentration is not None:
        concentration = f"is {redshifts.concentration:g}"
    else:
        concentration = "follows from the mass (Dutton & Maccio 2014, without scatter)"
    return f"Masses are M200 in M_sun {text}; the concentration c200 {concentration}."
