"""The mass and the light of a scene: profiles that add up, and the names of its components."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from darklens.errors import ConfigError
from darklens.scene.profile import LightProfile, MassProfile, Profile

P = TypeVar("P", bound=Profile)


class MassModel:
    """One or more mass profiles, whose deflections add up."""

    def __init__(self, profiles: MassProfile | Iterable[MassProfile]) -> None:
        self.profiles = _profiles(profiles, MassProfile, "mass")

    def __repr__(self) -> str:
        return f"MassModel({list(self.profiles)})"


class LightModel:
    """One or more light profiles, whose surface brightnesses add up."""

    def __init__(self, profiles: LightProfile | Iterable[LightProfile] = ()) -> None:
        self.profiles = _profiles(profiles, LightProfile, "light")

    @property
    def n_amplitudes(self) -> int:
        """Number of linear amplitudes."""
        return sum(profile.n_basis for profile in self.profiles)

    def __repr__(self) -> str:
        return f"LightModel({list(self.profiles)})"


def add_components(components: dict[str, Profile], profiles: Sequence[Profile], role: str | None) -> None:
    """Register components by name. Unnamed light is named after its role, with a number from the second one on."""
    for profile in profiles:
        name = profile.name
        if role and name == profile.kind:
            n = sum(key.startswith(role) for key in components)
            name = role if not n else f"{role}{n + 1}"
        if name in components:
            raise ConfigError(f"Two components are named {name!r}; give one of them another name.")
        components[name] = profile


def _profiles(profiles: Any, kind: type[P], role: str) -> tuple[P, ...]:
    """Return one profile or several as a tuple; raise ConfigError if one is not of this kind."""
    sequence = tuple(profiles) if isinstance(profiles, Iterable) else (profiles,)
    for profile in sequence:
        if isinstance(profile, type) and issubclass(profile, kind):
            raise ConfigError(f"{profile.__name__} is a class; write {profile.__name__}().")
        if not isinstance(profile, kind):
            raise ConfigError(f"{profile!r} is no {role} profile.")
    return sequence
