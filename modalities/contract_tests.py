"""The tests that every modality passes, ours and anyone's.

In a test module of your own::

    from noiseloom.modalities.contract_tests import *  # noqa: F403

    @pytest.fixture(scope="module")
    def case() -> Case:
        return Case(MyModality.fitted("some-data"), source="some-data")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import trajectory
from noiseloom.core.samples import Sample, map_parts, parts, pick
from noiseloom.core.schedules import SCHEDULES

from .modality import MODALITIES, Layout, Modality

__all__ = [
    "Case",
    "test_a_batch_is_reproducible_and_lies_in_its_space",
    "test_a_clean_batch_becomes_artifacts",
    "test_artifacts_are_saved_read_and_scored",
    "test_data_is_counted",
    "test_noise_depends_on_its_own_sample_only",
    "test_paired_noise_stays_in_the_space",
    "test_requests_become_layouts",
    "test_sampling_a_perfect_denoiser_gives_the_data",
    "test_the_configuration_is_plain_and_complete",
    "test_the_scale_is_as_stated",
]

COUNT = 4


@dataclass
class Case:
    """What the tests need: a modality fitted to a source, and a request of it."""

    modality: Modality
    source: str
    request: dict[str, Any] = field(default_factory=dict)

    def items(self, split: str = "train") -> list[Any]:
        """A few items of a split."""
        dataset = self.modality.dataset(self.source, split)
        return [dataset[i] for i in range(min(COUNT, len(dataset)))]

    def layout(self, seeds: list[int]) -> Layout:
        """The layout of a few samples."""
        request = self.modality.Request(**self.request)
        return self.modality.layout(request, self.modality.plans(request, seeds))


def _close(a: Sample, b: Sample, tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(pick(a, name), part, atol=tolerance) for name, part in parts(b).items())


def test_the_configuration_is_plain_and_complete(case: Case) -> None:
    config = json.loads(json.dumps(case.modality.config, allow_nan=False))
    again = MODALITIES.build({"name": case.modality.name, **config})
    assert json.loads(json.dumps(again.config)) == config


def test_data_is_counted(case: Case) -> None:
    for split in ("train", "valid"):
        dataset = case.modality.dataset(case.source, split)
        assert len(dataset) > 0
        assert str(len(dataset)) in str(dataset.report).replace(",", "")
        assert dataset.sizes is None or len(dataset.sizes) == len(dataset)
        shapes = getattr(dataset, "shapes", None)
        assert shapes is None or len(shapes) == len(dataset)


def test_a_batch_is_reproducible_and_lies_in_its_space(case: Case) -> None:
    items = case.items()
    example, again = case.modality.encode(items), case.modality.encode(items)
    assert _close(example.x0, again.x0, 0.0)
    assert _close(example.space.project(example.x0), example.x0)
    assert all(bool(part.isfinite().all()) for part in parts(example.x0).values())
    training = [case.modality.encode(items, sample_generators(3, range(len(items)))) for _ in range(2)]
    assert _close(training[0].x0, training[1].x0, 0.0)
    assert training[0].cond.keys() == training[1].cond.keys()


def test_the_scale_is_as_stated(case: Case) -> None:
    example = case.modality.encode(case.items())
    squares = example.space.mean_square(example.x0)
    for name, square in squares.items() if isinstance(squares, Mapping) else [("", squares)]:
        told = pick(case.modality.denoiser_options()["sigma_data"], name)
        assert told is None or told / 4 < float(square.mean()) ** 0.5 < told * 4, name


def test_noise_depends_on_its_own_sample_only(case: Case) -> None:
    items = case.items()
    example = case.modality.encode(items)
    noise = example.space.noise(example.x0, sample_generators(5, range(len(items))))
    assert _close(example.space.project(noise), noise)
    for i, item in enumerate(items):
        alone = case.modality.encode([item])
        own = alone.space.noise(alone.x0, sample_generators(5, [i]))
        for name, part in parts(own).items():
            within = pick(noise, name)[i : i + 1][tuple(slice(0, n) for n in part.shape)]
            assert torch.allclose(within, part, atol=1e-6)


def test_paired_noise_stays_in_the_space(case: Case) -> None:
    example = case.modality.encode(case.items())
    noise = example.space.noise(example.x0, sample_generators(5, range(len(example.x0))))
    size = example.space.mean_square(noise)
    paired = case.modality.couple(example.x0, noise, example.space)
    assert _close(example.space.project(paired), paired, 1e-4)
    after = example.space.mean_square(paired)
    sizes = zip(parts_of(size), parts_of(after), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in sizes)  # its law does not change, so neither does its norm


def parts_of(values: Any) -> list[Tensor]:
    return list(values.values()) if isinstance(values, Mapping) else [values]


def test_requests_become_layouts(case: Case) -> None:
    request = case.modality.Request(**case.request)
    seeds = [11, 12, 13]
    plans = case.modality.plans(request, seeds)
    assert [case.modality.plans(request, [seed])[0] for seed in seeds] == plans
    layout = case.modality.layout(request, plans)
    assert len(layout.start) == len(plans)
    noise = layout.space.noise(layout.start, sample_generators(0, seeds))
    assert _close(layout.space.project(noise), noise)


def test_sampling_a_perfect_denoiser_gives_the_data(case: Case) -> None:
    items = case.items()
    example = case.modality.encode(items)

    def perfect(x: Sample, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        return Estimate(example.x0, lambda: map_parts(torch.zeros_like, example.x0))

    options: dict[str, Any] = {
        "schedule": SCHEDULES.build("flow"),
        "space": example.space,
        "cond": example.cond,
        "steps": 3,
    }
    for sampler in ("euler", "dpmpp_2m", "ddpm"):
        *_, last = trajectory(
            perfect, map_parts(torch.zeros_like, example.x0), sampler=sampler, seeds=[1] * len(items), **options
        )
        assert _close(last.x, example.x0, 1e-4), sampler


def test_a_clean_batch_becomes_artifacts(case: Case) -> None:
    example = case.modality.encode(case.items())
    layout = Layout(example.x0, example.space, example.cond)
    artifacts = case.modality.decode(example.x0, layout)
    assert len(artifacts) == len(example.x0)
    assert all(artifact is not None for artifact in artifacts)


def test_artifacts_are_saved_read_and_scored(case: Case, tmp_path: Path) -> None:
    example = case.modality.encode(case.items())
    artifacts = case.modality.decode(example.x0, Layout(example.x0, example.space, example.cond))
    artifacts.append(None)  # a failed sample is counted, not hidden
    report = case.modality.evaluate(artifacts)
    assert len(artifacts) in {row.n for row in report.rows}
    assert sum(report.failed.values()) >= 1
    written = case.modality.save(artifacts, tmp_path, seeds=list(range(len(artifacts))), report=report)
    assert all(path.is_file() for path in written)
    read = case.modality.load_artifacts(tmp_path)
    assert len(read) == len(artifacts)
    assert sum(artifact is None for artifact in read) == 1
