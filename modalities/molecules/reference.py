"""What real molecules score: the figures and histograms that a report prints beside a model's.

``assets/qm9_reference.json`` holds those of QM9, so that a report needs no data set; ``assets/qm9_train_hashes.npz``
holds 64-bit hashes of the training molecules' canonical SMILES, for novelty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..extras import require
from .collection import read_arrays, write_arrays
from .distributions import KINDS, Distributions, Histogram
from .screening import graph_smiles

ASSETS = Path(__file__).parent / "assets"
QM9_REFERENCE = ASSETS / "qm9_reference.json"
QM9_TRAIN = ASSETS / "qm9_train_hashes.npz"


@dataclass(frozen=True)
class Reference:
    """Real molecules, measured.

    Attributes:
        name: which molecules, in a few words.
        n: how many.
        values: the metrics of these molecules by row name; for distances, those between two sets of real molecules.
        distributions: their histograms.
    """

    name: str
    n: int
    values: Mapping[str, float]
    distributions: Distributions

    def to_json(self) -> str:
        """As JSON text; histograms as ``[start, count, count, ...]`` on the grids of ``KINDS``."""
        histograms = {
            kind: {group: [h.start, *h.counts.tolist()] for group, h in groups.items()}
            for kind, groups in self.distributions.items()
        }
        content = {"name": self.name, "n": self.n, "values": dict(self.values), "histograms": histograms}
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The inverse of :meth:`to_json`."""
        content = json.loads(text)
        distributions = {
            kind: {group: Histogram(KINDS[kind].step, start, np.array(c)) for group, (start, *c) in groups.items()}
            for kind, groups in content["histograms"].items()
        }
        return cls(content["name"], content["n"], content["values"], distributions)


@cache
def qm9_reference() -> Reference:
    """2,000 random molecules of QM9's test split."""
    return Reference.from_json(QM9_REFERENCE.read_text(encoding="utf-8"))


class SmilesHashes:
    """A set of SMILES that answers ``in``, in 8 bytes each; a false "yes" has a chance of about len / 2^64."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = np.sort(hashes)

    @classmethod
    def of(cls, smiles: Iterable[str]) -> SmilesHashes:
        """The hashes of these SMILES, which must be as :func:`.screening.graph_smiles` writes them."""
        return cls(np.unique(np.fromiter(map(_hash, smiles), np.uint64)))

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._hashes.tolist())

    def __contains__(self, smiles: object) -> bool:
        place = np.searchsorted(self._hashes, value := np.uint64(_hash(str(smiles))))
        return bool(place < len(self) and self._hashes[place] == value)


def _hash(smiles: str) -> int:
    return int.from_bytes(blake2b(smiles.encode(), digest_size=8).digest(), "big")


@cache
def qm9_train() -> SmilesHashes | None:
    """The training split of QM9 (100,000 molecules), for novelty.

    None where this version of RDKit writes canonical SMILES differently from the one that made the hashes: every
    molecule would look new.
    """
    arrays = read_arrays(QM9_TRAIN)
    parse = require("rdkit.Chem", "molecules").MolFromSmiles
    probes = arrays["probes"].tobytes().decode().split("\n")
    return SmilesHashes(arrays["hashes"]) if all(graph_smiles(parse(probe)) == probe for probe in probes) else None


def write_train_hashes(smiles: Iterable[str], path: Path = QM9_TRAIN) -> None:
    """Write the hashes of training SMILES (any form) and a hundred of the SMILES themselves, as probes."""
    parse = require("rdkit.Chem", "molecules").MolFromSmiles
    canonical = sorted({graph_smiles(parse(text)) for text in smiles})
    probes = canonical[:: max(1, len(canonical) // 100)]
    hashes = np.array(list(SmilesHashes.of(canonical)), np.uint64)
    write_arrays(path, {"hashes": hashes, "probes": np.frombuffer("\n".join(probes).encode(), np.uint8)})
