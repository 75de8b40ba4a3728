"""3D molecules: positions, elements, formal charges and bonds of every atom, hydrogens included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from noiseloom.core.objectives import Example
from noiseloom.core.randomness import generator
from noiseloom.core.samples import Sample, product
from noiseloom.core.spaces import Space

from ..modality import MODALITIES, Layout, Modality, Plan
from ..report import Report
from . import energies, networks  # noqa: F401  (registers them)
from .alignment import assign, random_rotations, rotation_onto
from .collection import MoleculeSet
from .data import open_molecules
from .fragments import random_fragment
from .molecule import SYMBOLS, Molecule, from_rdkit, to_rdkit
from .request import PROPERTIES, MoleculeRequest, parse_formula
from .state import BONDS, Encoding, known_parts, space_of

_SIZE_KEY, _COUNT_UNIT = -5, 10.0  # a key of generators for sizes; atoms of an element in one unit of "composition"


Record = tuple[Molecule, dict[str, float]]  # a molecule and its property values by name


@dataclass(frozen=True)
class Records:
    """A set of molecules with their properties, as items of training."""

    molecules: MoleculeSet

    @property
    def sizes(self) -> Sequence[int]:
        return self.molecules.sizes  # type: ignore[return-value]

    @property
    def report(self) -> Any:
        return self.molecules.report

    def __len__(self) -> int:
        return len(self.molecules)

    def __getitem__(self, index: int) -> Record:
        return self.molecules[index], {name: float(v[index]) for name, v in self.molecules.properties.items()}


@MODALITIES.register("molecules")
class Molecules(Modality):
    """Molecules of one vocabulary.

    Args:
        elements: symbols of the elements.
        charges: formal charges, consecutive.
        scale: angstrom in a unit of length: the standard deviation of the coordinates.
        sizes: how many training molecules have each number of atoms.
        properties: for each property its mean and std, and ``by_size``: mean and std for each number of atoms.
        one_hot_scale: the value of a one-hot's one. Small: types are decided late, when positions are.
        rotate: rotate training molecules at random; for networks that are not equivariant.
        known_rate: the share of training batches with a known part, for growing scaffolds.
        drop_rate: the share of training molecules without conditions, for guidance.
    """

    name = "molecules"
    Request = MoleculeRequest

    def __init__(
        self,
        elements: Sequence[str],
        charges: Sequence[int],
        scale: float,
        sizes: Mapping[str, int],
        properties: Mapping[str, Any] | None = None,
        one_hot_scale: float = 0.5,
        rotate: bool = False,
        known_rate: float = 0.1,
        drop_rate: float = 0.5,
    ) -> None:
        unknown = [symbol for symbol in elements if symbol not in SYMBOLS]
        if unknown or not elements:
            raise ValueError(f"unknown elements: {', '.join(unknown) or 'none given'}")
        if list(charges) != list(range(min(charges), max(charges) + 1)):
            raise ValueError(f"charges must be consecutive whole numbers, got {list(charges)}")
        if scale <= 0 or one_hot_scale <= 0:
            raise ValueError("scale and one_hot_scale must be positive")
        self.encoding = Encoding(tuple(elements), tuple(int(c) for c in charges), float(scale), float(one_hot_scale))
        self.histogram = {int(size): int(count) for size, count in sizes.items()}
        self.properties = {name: dict(entry) for name, entry in (properties or {}).items()}
        self.rotate, self.known_rate, self.drop_rate = rotate, known_rate, drop_rate

    @property
    def config(self) -> dict[str, Any]:
        return {
            "elements": list(self.encoding.elements),
            "charges": list(self.encoding.charges),
            "scale": self.encoding.scale,
            "sizes": {str(size): count for size, count in self.histogram.items()},
            "properties": self.properties,
            "one_hot_scale": self.encoding.one_hot_scale,
            "rotate": self.rotate,
            "known_rate": self.known_rate,
            "drop_rate": self.drop_rate,
        }

    @classmethod
    def fitted(
        cls,
        source: str,
        data: Mapping[str, Any] | None = None,
        properties: Sequence[str] | None = None,
        **options: Any,
    ) -> Molecules:
        """Vocabulary, scale, sizes and property statistics of a training set.

        Args:
            source, data: what to open, and the options of ``open_molecules``.
            properties: which of the set's properties become conditions; by default alpha, gap, mu and Cv, as far as
                the set has them.
        """
        dataset = open_molecules(source, "train", **dict(data or {}))
        names = [p for p in PROPERTIES if p in dataset.properties] if properties is None else list(properties)
        missing = [name for name in names if name not in dataset.properties]
        if missing:
            choices = ", ".join(dataset.properties) or "none"
            raise ValueError(f"the data has no property {', '.join(missing)}. Properties: {choices}")
        sizes = np.asarray(dataset.sizes)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        sums = np.stack([np.bincount(owner, dataset.positions[:, k], len(sizes)) for k in range(3)], 1)
        centred = dataset.positions - (sums / sizes[:, None])[owner]
        kinds, counts = np.unique(sizes, return_counts=True)
        fitted = {}
        for name in names:
            values = np.asarray(dataset.properties[name])
            given = ~np.isnan(values)
            spread = max(float(values[given].std()), 1e-6) if given.any() else 1.0
            by_size = {}
            for size in kinds:
                own = values[given & (sizes == size)]
                if len(own):
                    by_size[str(size)] = [round(float(own.mean()), 6), round(max(float(own.std()), 0.05 * spread), 6)]
            fitted[name] = {
                "mean": float(values[given].mean()) if given.any() else 0.0,
                "std": spread,
                "by_size": by_size,
            }
        return cls(
            elements=[SYMBOLS[number] for number in np.unique(dataset.numbers)],
            charges=list(range(min(int(dataset.charges.min()), 0), max(int(dataset.charges.max()), 0) + 1)),
            scale=round(float(centred.std()), 4),
            sizes={str(size): int(count) for size, count in zip(kinds, counts, strict=True)},
            properties=fitted,
            **options,
        )

    def network_options(self) -> dict[str, Any]:
        conditions = {"composition": len(self.encoding.elements)}
        conditions |= {"properties": len(self.properties)} if self.properties else {}
        return {
            "atom_types": len(self.encoding.elements),
            "charge_types": len(self.encoding.charges),
            "bond_types": BONDS,
            "conditions": conditions,
        }

    def denoiser_options(self) -> dict[str, Any]:
        scale = self.encoding.one_hot_scale
        categorical = {"name": "categorical", "scale": scale}
        return {
            "prediction": {
                "positions": {"name": "edm", "sigma_data": 1.0},
                "atoms": categorical,
                "charges": categorical,
                "bonds": categorical,
            },
            "sigma_data": {"positions": 1.0, "atoms": scale, "charges": scale, "bonds": scale},
        }

    # Training

    def dataset(self, source: str, split: str, **data: Any) -> Records:
        return Records(open_molecules(source, split, **{"vocabulary": self.encoding.elements, **data}))

    def encode(self, items: Sequence[Record], generators: Sequence[Generator] | None = None) -> Example:
        pairs = list(items)
        x0, mask = self.encoding.tensors([molecule for molecule, _ in pairs])
        nan = float("nan")
        cond: dict[str, Any] = {
            "mask": mask,
            "composition": (x0["atoms"].sum(1) / self.encoding.one_hot_scale / _COUNT_UNIT).float(),
        }
        if self.properties:
            values = [[own.get(name, nan) for name in self.properties] for _, own in pairs]
            cond["properties"] = self._standardised(torch.tensor(values, dtype=torch.float64))
        if generators is None:
            for name in ("composition", "properties"):
                if name in cond:
                    cond[name] = torch.full_like(cond[name], nan)
            return Example(x0, space_of(mask), cond)
        if self.rotate:
            x0["positions"] = x0["positions"] @ random_rotations(list(generators))
        self._drop(cond, generators)
        if float(torch.rand((), generator=generators[0])) >= self.known_rate:  # one coin a batch: one shape of times
            return Example(x0, space_of(mask), cond)
        chosen = [random_fragment(molecule, g) for (molecule, _), g in zip(pairs, generators, strict=True)]
        known = known_parts(torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True) & mask)
        space = space_of(mask, known)
        return Example(space.project(x0), space, cond, known)

    def _drop(self, cond: dict[str, Any], generators: Sequence[Generator]) -> None:
        """Conditions to NaN: all of them at ``drop_rate``, each of the rest at one half."""
        draws = torch.stack([torch.rand(2 + len(self.properties), generator=g) for g in generators])
        absent = draws[:, :1] < self.drop_rate
        cond["composition"] = torch.where(absent | (draws[:, 1:2] < 0.5), torch.nan, cond["composition"])
        if self.properties:
            cond["properties"] = torch.where(absent | (draws[:, 2:] < 0.5), torch.nan, cond["properties"])

    def couple(self, x0: Sample, noise: Sample, space: Space) -> Sample:
        """Noise positions assigned to atoms and rotated onto them; samples with known atoms are left as drawn."""
        centred = space.spaces["positions"]  # type: ignore[attr-defined]
        if centred.known is not None:
            return noise
        counts = centred.mask.sum(1).tolist()
        paired = assign(noise["positions"], x0["positions"], counts)
        noise["positions"] = paired @ rotation_onto(paired, x0["positions"])
        return noise

    def _standardised(self, values: Tensor) -> Tensor:
        mean, std = (
            torch.tensor([p[key] for p in self.properties.values()], dtype=torch.float64) for key in ("mean", "std")
        )
        return ((values - mean) / std).float()

    # Sampling

    def plans(self, request: MoleculeRequest, seeds: Sequence[int]) -> list[Plan]:
        return [Plan(size) for size in self._sizes(request, seeds)]

    def _sizes(self, request: MoleculeRequest, seeds: Sequence[int]) -> list[int]:
        self._check_properties(request)
        if request.formula:
            total = sum(self._formula(request.formula).values())
            if request.atoms not in (None, total):
                raise ValueError(f"formula {request.formula} has {total} atoms, not atoms={request.atoms}")
            if request.scaffold:
                raise ValueError("give a formula or a scaffold, not both")
            return [total] * len(seeds)
        kept = len(self._scaffold(request.scaffold)) if request.scaffold else 0
        if request.atoms is not None:
            if request.atoms < max(kept, 1):
                raise ValueError(f"atoms={request.atoms} is too few" + (f": the scaffold has {kept}" if kept else ""))
            return [request.atoms] * len(seeds)
        sizes = torch.tensor(sorted(self.histogram))
        weights = torch.tensor([float(self.histogram[int(size)]) for size in sizes], dtype=torch.float64)
        for name, value in request.wanted().items():
            weights = weights * torch.tensor([self._likelihood(name, value, int(size)) for size in sizes])
        allowed = weights * (sizes > kept) if kept else weights
        if float(allowed.sum()) <= 0:
            reason = f"the scaffold has {kept} atoms" if kept else "no training molecule is near these properties"
            raise ValueError(f"{reason}: give atoms=N")
        draws = [torch.multinomial(allowed, 1, generator=generator(seed, _SIZE_KEY)) for seed in seeds]
        return [int(sizes[int(draw)]) for draw in draws]

    def layout(self, request: MoleculeRequest, plans: Sequence[Plan]) -> Layout:
        sizes = [plan.size for plan in plans]
        batch, size = len(sizes), max(sizes)
        mask = torch.arange(size)[None] < torch.tensor(sizes)[:, None]
        counts = torch.full((batch, len(self.encoding.elements)), torch.nan)
        if request.formula:
            formula = self._formula(request.formula)
            counts[:] = torch.tensor([formula.get(e, 0) / _COUNT_UNIT for e in self.encoding.elements])
        cond: dict[str, Any] = {"mask": mask, "composition": counts}
        if self.properties:
            wanted = request.wanted()
            values = torch.tensor([[wanted.get(name, float("nan")) for name in self.properties]], dtype=torch.float64)
            cond["properties"] = self._standardised(values).expand(batch, -1).contiguous()
        start = product(
            {
                "positions": torch.zeros(batch, size, 3),
                "atoms": torch.zeros(batch, size, len(self.encoding.elements)),
                "charges": torch.zeros(batch, size, len(self.encoding.charges)),
                "bonds": torch.zeros(batch, size, size, BONDS),
            }
        )
        if not request.scaffold:
            return Layout(start, space_of(mask), cond)
        scaffold = self._scaffold(request.scaffold)
        # Sampling is centred on the scaffold; decode() moves the molecules back to where the file has it.
        cond["origin"] = torch.tensor(scaffold.positions.mean(0)).expand(batch, 1, 3)
        clean, _ = self.encoding.tensors([scaffold])
        kept = clean["positions"].shape[1]
        for part in ("positions", "atoms", "charges"):
            start[part][:, :kept] = clean[part]
        start["bonds"][:, :kept, :kept] = clean["bonds"]
        known = known_parts((torch.arange(size) < kept).expand(batch, size).contiguous())
        return Layout(start, space_of(mask, known), cond, known)

    def decode(self, x0: Sample, layout: Layout) -> list[Any]:
        if "origin" in layout.cond:
            x0 = x0.clone()
            x0["positions"] = x0["positions"] + layout.cond["origin"].to(x0["positions"]) / self.encoding.scale
        molecules = self.encoding.molecules(x0, layout.cond["mask"])
        return [to_rdkit(molecule) for molecule in molecules]

    def _check_properties(self, request: MoleculeRequest) -> None:
        unknown = [name for name in request.wanted() if name not in self.properties]
        if unknown:
            choices = ", ".join(self.properties) or "none"
            raise ValueError(f"this checkpoint was not trained on {', '.join(unknown)}. Properties: {choices}")

    def _likelihood(self, name: str, value: float, size: int) -> float:
        """How common a property value is among training molecules of a size."""
        if str(size) not in self.properties[name]["by_size"]:
            return 0.0
        mean, std = self.properties[name]["by_size"][str(size)]
        return float(np.exp(-0.5 * ((value - mean) / std) ** 2) / std)

    def _formula(self, text: str) -> dict[str, int]:
        counts = parse_formula(text)
        outside = [symbol for symbol in counts if symbol not in self.encoding.elements]
        if outside:
            known = ", ".join(self.encoding.elements)
            raise ValueError(f"formula {text}: {', '.join(outside)} not in the checkpoint's vocabulary: {known}")
        return counts

    @cached_property
    def _scaffolds(self) -> dict[str, Molecule]:
        return {}

    def _scaffold(self, path: str) -> Molecule:
        """The molecule to keep: the first record of an SDF, as it is."""
        if path not in self._scaffolds:
            first = next((mol for mol in self.load_artifacts(Path(path)) if mol is not None), None)
            if first is None:
                raise ValueError(f"{path} holds no readable molecule")
            self._scaffolds[path] = from_rdkit(first)
        return self._scaffolds[path]

    # Results

    def save(
        self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Report | None, **options: Any
    ) -> list[Path]:
        from .files import save

        return save(artifacts, directory, seeds=seeds, report=report, **options)

    @classmethod
    def load_artifacts(cls, path: Path) -> list[Any]:
        from .files import read_molecules

        return read_molecules(path)

    @classmethod
    def evaluate(
        cls, artifacts: Sequence[Any], reference: Path | None = None, options: Mapping[str, Any] | None = None
    ) -> Report:
        from .metrics import evaluate

        real = None if reference is None else [mol for mol in cls.load_artifacts(reference) if mol is not None]
        return evaluate(artifacts, real, **dict(options or {}))
