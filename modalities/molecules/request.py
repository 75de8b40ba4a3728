"""What one can ask of a molecule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PROPERTIES = ("alpha", "gap", "mu", "Cv")


@dataclass
class MoleculeRequest:
    """What one can ask of a molecule.

    Attributes:
        atoms: number of atoms with hydrogens; by default drawn from the training data.
        formula: a molecular formula such as C7H10O2; sets the number of atoms.
        scaffold: an SDF whose first molecule is kept, atom by atom, and grown.
        alpha: polarisability in Bohr^3, where the checkpoint was trained on it; likewise below.
        gap: HOMO-LUMO gap in eV.
        mu: dipole moment in D.
        Cv: heat capacity in cal/mol/K, less 2.981 for each atom (EDM's definition).
        properties: values of other properties that the checkpoint was trained on, by name.
    """

    atoms: int | None = None
    formula: str | None = None
    scaffold: str | None = None
    alpha: float | None = None
    gap: float | None = None
    mu: float | None = None
    Cv: float | None = None
    properties: dict[str, float] = field(default_factory=dict)

    def wanted(self) -> dict[str, float]:
        """All requested property values by name."""
        named = {name: getattr(self, name) for name in PROPERTIES}
        return {name: float(value) for name, value in {**named, **self.properties}.items() if value is not None}


def parse_formula(text: str) -> dict[str, int]:
    """Atoms of each element in a molecular formula such as C7H10O2.

    Raises:
        ValueError: it is not one.
    """
    if not re.fullmatch(r"([A-Z][a-z]?\d*)+", text):
        raise ValueError(f"{text!r} is not a molecular formula such as C7H10O2")
    counts: dict[str, int] = {}
    for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", text):
        counts[symbol] = counts.get(symbol, 0) + int(count or 1)
    return counts
