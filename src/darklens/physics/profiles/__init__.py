"""Mass profiles, one module each: the laws `potential`, `deflection` and `convergence`, and the card.

A card is the module's `PARAMETERS` and `REFERENCE`. `PROFILES` collects laws and cards by name, and every profile in it
gets the tests of tests/laws.
"""

from functools import partial

from darklens.physics.profiles import epl, line, multipole, nfw, point, pseudo_jaffe, shear, sie, sis, tnfw
from darklens.physics.profiles.card import Parameter, Profile
from darklens.registry import Registry

__all__ = ["PROFILES", "Parameter", "Profile"]

PROFILES: Registry[Profile] = Registry("mass profile", extensible=True)
for _module in (sis, sie, shear, point, line, epl, nfw, tnfw, pseudo_jaffe):
    PROFILES.add(
        _module.__name__.rpartition(".")[2],
        Profile(
            potential=_module.potential,
            deflection=_module.deflection,
            convergence=_module.convergence,
            parameters=_module.PARAMETERS,
            reference=_module.REFERENCE,
        ),
    )
for _m in multipole.ORDERS:
    PROFILES.add(
        f"multipole{_m}",
        Profile(
            potential=partial(multipole.potential, m=_m),
            deflection=partial(multipole.deflection, m=_m),
            convergence=partial(multipole.convergence, m=_m),
            parameters=multipole.PARAMETERS,
            reference=multipole.REFERENCE,
        ),
    )
