"""A teacher's paths, made once and kept in the cache: a student then trains for what its own calls cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from noiseloom.core.devices import move
from noiseloom.core.objectives import Example
from noiseloom.core.objectives.distillation import Taught, Trajectory
from noiseloom.core.randomness import generator
from noiseloom.core.samples import WHOLE, Sample, parts, product
from noiseloom.core.schedules import Schedule
from noiseloom.modalities.cache import Arrays, Writer, cached_arrays

from .items import Items

_ENCODED, _STARTED = -11, -12  # keys of generators: of an item's example, and of the noise of its path
_BLOCK = 512  # paths that are in memory while they are made


class TeacherPaths:
    """Training data of which each item is a path of a teacher: an item of a data set as a training example (its
    conditions dropped, its known parts drawn, once), and the states of the path under these.

    Args:
        items: the data; path i is of item i modulo their number.
        objective: whose teacher and times.
        schedule: of the teacher.
        count: how many paths.
        batch_size: the most that are made at a time.
        device: where.
        fingerprint: all that the data and the teacher are made of.
        seed: of the paths.
    """

    def __init__(
        self,
        items: Items,
        objective: Trajectory,
        schedule: Schedule,
        count: int,
        batch_size: int,
        device: torch.device,
        fingerprint: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.items, self.count, self.seed = items, count, seed
        places = [i % len(items) for i in range(count)]
        self.sizes = None if items.sizes is None else [int(items.sizes[place]) for place in places]
        self.shapes = None if items.shapes is None else np.asarray(items.shapes)[places]
        self.stored = self._stored(objective, schedule, batch_size, device, {**fingerprint, "paths": count})

    def __len__(self) -> int:
        return self.count

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Taught:
        """The paths of these numbers; nothing is drawn."""
        example = self._encoded(indices)
        shapes, paths = (
            self.stored.meta["shapes"],
            [torch.from_numpy(self.stored[i].astype(np.float32)) for i in indices],
        )
        found = [_unpacked(path, shapes[i]) for path, i in zip(paths, indices, strict=True)]
        states = tuple(_batch([path[k] for path in found], example.x0) for k in range(len(found[0])))
        return Taught(example.x0, example.space, example.cond, example.known, states)

    def _encoded(self, indices: Sequence[int]) -> Example:
        own = [generator(self.seed, _ENCODED, i) for i in indices]
        return self.items.example([i % len(self.items) for i in indices], own)

    def _stored(
        self, objective: Trajectory, schedule: Schedule, batch_size: int, device: torch.device, told: Mapping[str, Any]
    ) -> Arrays:
        places = objective.places(schedule)

        def build(writer: Writer) -> None:
            shapes: list[dict[str, list[int]]] = []
            for first in range(0, self.count, _BLOCK):
                block = range(first, min(first + _BLOCK, self.count))
                made: dict[int, tuple[np.ndarray, dict[str, list[int]]]] = {}
                for alike in self._alike(block, batch_size):
                    example = move(self._encoded(alike), device)
                    noise = example.space.noise(example.x0, [generator(self.seed, _STARTED, i) for i in alike])
                    states = objective.paths.states(example, noise, schedule, places)
                    for row, i in enumerate(alike):
                        each = [{name: value[row].cpu() for name, value in parts(x).items()} for x in states]
                        flat = torch.cat([value.flatten() for state in each for value in state.values()])
                        made[i] = flat.numpy(), {name: list(value.shape) for name, value in each[0].items()}
                for i in block:
                    writer.add(made[i][0])
                    shapes.append(made[i][1])
            writer.meta["shapes"] = shapes

        told = {**told, "seed": self.seed, "places": places}
        return cached_arrays("paths", told, build, dtype="float16", total=self.count)

    def _alike(self, block: Sequence[int], most: int) -> list[list[int]]:
        """Those of one size and shape together, so that none is padded."""
        groups: dict[Any, list[int]] = {}
        for i in block:
            shape = None if self.shapes is None else tuple(self.shapes[i])
            groups.setdefault((shape, None if self.sizes is None else self.sizes[i]), []).append(i)
        return [group[k : k + most] for group in groups.values() for k in range(0, len(group), most)]


def _unpacked(flat: Tensor, shapes: Mapping[str, Sequence[int]]) -> list[dict[str, Tensor]]:
    """The states of a path, each by part."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    return [
        {name: one.reshape(shape) for (name, shape), one in zip(shapes.items(), state.split(sizes), strict=True)}
        for state in flat.split(sum(sizes))
    ]


def _batch(states: Sequence[Mapping[str, Tensor]], like: Sample) -> Sample:
    """States of several samples as a batch of the shape of ``like``, padded with zeros at the end of each axis."""
    out = {}
    for name, part in parts(like).items():
        rows = [state[name] for state in states]
        pads = [
            [
                n
                for mine, most in zip(reversed(row.shape), reversed(part.shape[1:]), strict=True)
                for n in (0, most - mine)
            ]
            for row in rows
        ]
        out[name] = torch.stack([F.pad(row, pad) for row, pad in zip(rows, pads, strict=True)]).to(part)
    return out[WHOLE] if WHOLE in out else product(out)
