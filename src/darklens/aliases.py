"""Old names in configurations and stored files, and the names that replaced them.

Names are replaced where a file is read (`config.load`, `Contract`, `Bundle.load`, `FitCache`), never inside.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


class Key(NamedTuple):
    """A renamed key of a configuration.

    `place` is the `kind` of the mapping that has the key, or the key under which that mapping stands.
    """

    place: str
    old: str
    new: str
    values: Mapping[str, str] = {}


CONFIGURATION = (
    Key("curves", "given", "predicted"),
    Key("curves", "meant", "calibrated"),
    Key("data", "engine", "backend"),
    Key("lens_residual", "sees", "inputs", {"numbers": "summary"}),
    Key("sis_autoencoder2", "collide", "reduction"),
)
"""Recipes, run configurations and bundle.json."""

STATE_DICT = {"tower": "encoder", "of_numbers": "summary_mlp", "normalise": "summary_norm", "direct": "summary_linear"}
"""Modules by the name that weights are stored under; a name is replaced only where the network has no such module."""

FITS = {
    "blocks": "n_pixels_fitted",
    "extra_noise": "extra_variance",
    "line_gain": "delta_chi2_line",
    "beside_line": "delta_chi2_point_given_line",
    "point_peak": "evidence_peak",
    "point_gain_1": "delta_chi2_points_1",
    "point_gain_2": "delta_chi2_points_2",
    "point_gain_3": "delta_chi2_points_3",
    "beside_points": "delta_chi2_point_given_points",
}
"""Names in fits.json."""

PREDICTIONS = {
    "chi2": "chi2_per_pixel",
    "chi2_line": "chi2_per_pixel_line",
    "chi2_points": "chi2_per_pixel_points",
    "beside_line": "delta_chi2_point_given_line",
}
"""Columns of predictions.csv; the old ones are repeated at the end of each row for one release."""


def configuration(tree: Any, key: str = "") -> Any:
    """Return a configuration with its old keys and values replaced; where old and new key meet, the old one wins.

    An override is laid over a configuration that has the new names already, so an old key in it is the younger one.

    Args:
        tree: A mapping, list or value as read from YAML or JSON.
        key: Under which `tree` stands.
    """
    if isinstance(tree, list):
        return [configuration(item, key) for item in tree]
    if not isinstance(tree, dict):
        return tree
    renamed = {name: configuration(value, str(name)) for name, value in tree.items()}
    for place, old, new, values in CONFIGURATION:
        if old in renamed and place in (key, tree.get("kind")):
            value = renamed.pop(old)
            renamed[new] = values.get(value, value) if isinstance(value, str) else value
    return renamed


def state_dict_name(name: str, expected: Collection[str]) -> str:
    """Return the name of a stored weight in the network that expects such names."""
    if name in expected:
        return name
    parts = [STATE_DICT.get(part, part) for part in name.split(".")]
    return ".".join(parts) if ".".join(parts) in expected else name
