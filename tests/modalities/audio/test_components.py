"""Components: trained by the same loop, published and read back like any checkpoint, refused when tampered with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from noiseloom.core.pipeline import CheckpointError, load_pretrained
from noiseloom.core.registry import UnknownName
from noiseloom.core.training import TrainerConfig, checkpoint, train
from noiseloom.modalities import component as components
from noiseloom.modalities.audio.autoencoder import Autoencoder
from noiseloom.modalities.audio.classifier import Classifier
from noiseloom.modalities.audio.reconstruction import Reconstruction
from noiseloom.modalities.audio.segments import AudioBatch, Segment, segments
from noiseloom.modalities.audio.vocoder import Vocoder
from noiseloom.modalities.audio.waveform import Waveform
from noiseloom.modalities.component import COMPONENTS, Component, find_component, load_component, save_component


class Noises:
    """Training data: segments of noise."""

    sizes = None

    def __init__(self, component: Component, count: int = 8) -> None:
        draw = np.random.default_rng(0)
        waves = [Waveform(0.3 * draw.normal(size=(1, n)).clip(-3, 3), 8000) for n in range(900, 900 + count)]
        self.component, self.items = component, [Segment(wave, 640) for wave in waves]

    def __len__(self) -> int:
        return len(self.items)

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Any:
        return self.component.example([self.items[index] for index in indices], generators)


def run(directory: Path, component: Component, **options: Any) -> dict[str, dict[str, torch.Tensor]]:
    """A whole run with discriminators from step 2, or the rest of one; returns the tensors of its last checkpoint."""
    defaults: dict[str, Any] = {
        "steps": 5, "batch_size": 4, "warmup": 1, "checkpoint_every": 2, "eval_every": 5, "decay": "constant",
        "device": "cpu", "precision": "bf16",
    }  # fmt: skip
    objective = Reconstruction(component, adversarial_start=2, adversarial_ramp=2, width=2)  # type: ignore[arg-type]
    config = TrainerConfig(**{**defaults, **options})
    train(component, objective, Noises(component), config, directory, valid=Noises(component, 3))
    found = checkpoint.load_newest(directory / "checkpoints")
    assert found is not None
    return found.tensors


def tiny(kind: str = "vocoder") -> Component:
    torch.manual_seed(0)
    return {
        "vocoder": lambda: Vocoder(width=8, depth=1),
        "autoencoder": lambda: Autoencoder(rate=8000, n_fft=64, widths=(8, 8), strides=(2,), width=3, depth=1),
        "classifier": lambda: Classifier({"label": ["0", "1"]}, widths=(4, 4), embedding=3, gallery=5),
    }[kind]()


@pytest.mark.parametrize("kind", ["vocoder", "autoencoder"])
def test_stopping_and_going_on_changes_nothing(tmp_path: Path, kind: str) -> None:
    whole = run(tmp_path / "whole", tiny(kind))
    for steps in (1, 3, 5):
        parts = run(tmp_path / "parts", tiny(kind), steps=steps)
    for name, tensors in whole.items():
        assert tensors.keys() == parts[name].keys()
        assert all(torch.equal(value, parts[name][key]) for key, value in tensors.items()), name
    start = tiny(kind).state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in whole["model"].items())
    fresh = Reconstruction(tiny(kind), width=2).state_dict()  # type: ignore[arg-type]
    assert fresh.keys() == whole["objective"].keys()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"valid/loss", "valid/loss/mel", "valid/loss/stft"} <= set(rows[-1])


@pytest.mark.parametrize("kind", ["vocoder", "autoencoder", "classifier"])
def test_what_is_published_is_read_back(tmp_path: Path, kind: str) -> None:
    made = tiny(kind)
    folder = save_component(tmp_path / "mine", made, {"recipe": "audio/x", "metrics": {"mel_distance": 0.25}})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = load_component(folder)
    assert type(again) is type(made)
    assert again.config == made.config
    assert not again.training
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert "mel_distance | 0.25" in (folder / "README.md").read_text()
    assert COMPONENTS.build(made.spec()).config == made.config


def test_a_component_is_found_by_its_name_folder_or_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny()
    folder = save_component(tmp_path / "mine", made)
    monkeypatch.setitem(components.BUNDLED, "ours", folder)
    for spec in ("ours", str(folder), folder):
        assert torch.equal(find_component(spec).head.weight, made.head.weight)  # type: ignore[union-attr, arg-type]
    assert find_component(made) is made
    assert find_component({"name": "vocoder", "width": 8, "depth": 1}).config == made.config
    with pytest.raises(UnknownName, match=r"unknown component 'our'\. Did you mean 'ours'"):
        find_component("our")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_was_tampered_with_is_refused(tmp_path: Path) -> None:
    folder = save_component(tmp_path / "mine", tiny())
    spec = tiny().spec()
    for values, message in (
        ({"component": {**spec, "_target_": "os.system"}}, "refused the key 'component._target_'"),
        ({"component": {**spec, "preset": "/etc/passwd"}}, "may not name a path"),
        ({"component": spec, "network": {"name": "dit"}}, "unknown key 'network'"),
        ({"component": "vocoder"}, "component needs a 'name'"),
        ({"format": 2}, "format 2"),
        ({"component": {**spec, "width": 16}}, "does not fit"),
    ):
        save_component(folder, tiny())
        change(folder, **values)
        with pytest.raises(CheckpointError, match=message):
            load_component(folder)
    save_component(folder, tiny())
    change(folder, component={"name": "os.system"})
    with pytest.raises(UnknownName, match=r"unknown component 'os\.system'"):
        load_component(folder)
    save_component(folder, tiny())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_component(folder)
    weights.rename(folder / "model.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        load_component(folder)


def test_the_two_kinds_of_checkpoint_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    folder = save_component(tmp_path / "mine", tiny())
    with pytest.raises(CheckpointError, match="no 'modality'"):
        load_pretrained(folder)


def test_segments_are_of_one_length_wherever_the_clip_is_short_or_long() -> None:
    waves = [Waveform(np.ones((1, n), np.float32), 8000) for n in (10, 64, 500)]
    held_out = segments([Segment(wave, 64) for wave in waves], None)
    assert held_out.audio.shape == (3, 1, 64)
    assert held_out.audio[:, 0].count_nonzero(dim=1).tolist() == [10, 64, 64]
    assert set(held_out.audio.unique().tolist()) == {0.0, 0.5}
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn: AudioBatch = segments([Segment(wave, 64) for wave in waves], generators)
    assert drawn.audio[:, 0].count_nonzero(dim=1).tolist() == [10, 64, 64]
    levels = drawn.audio.amax((1, 2))
    assert ((levels >= 0.03) & (levels <= 1)).all()
    assert len(set(levels.tolist())) == 3
