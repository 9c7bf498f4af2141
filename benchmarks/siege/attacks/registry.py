"""All attacks by name."""

from __future__ import annotations

from benchmarks.siege.attacks.attack import Attack
from benchmarks.siege.attacks.guided import GUIDE_ATTACKS
from benchmarks.siege.attacks.shares import SHARE_ATTACKS
from benchmarks.siege.attacks.transport import TRANSPORT_ATTACKS

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in (*GUIDE_ATTACKS, *TRANSPORT_ATTACKS, *SHARE_ATTACKS)}


def find_attacks(names: list[str], *, has_guides: bool = True) -> list[Attack]:
    """Returns the attacks whose names contain one of `names`, in order; all without any. `has_guides`: guided ones too.

    Raises ValueError, which lists the attacks, if one of `names` fits no attack.
    """
    for name in names:
        if not any(name.lower() in known.lower() for known in ATTACKS):
            raise ValueError(f"No attack is named {name!r}. The attacks are: {', '.join(ATTACKS)}.")
    attacks = ATTACKS.values() if has_guides else (*TRANSPORT_ATTACKS, *SHARE_ATTACKS)
    return [attack for attack in attacks if not names or any(name.lower() in attack.name.lower() for name in names)]
