"""Small clips like real ones, and small models of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

RATE = 8000
PREPARED = {"level": "rms"}
SPECS: dict[str, dict[str, Any]] = {
    "wave": {"name": "wave", "rate": RATE, "patch": 64, "lift": 10.0},
    "mel": {"name": "mel", "preset": "speech-8k", "vocoder": {"name": "griffin_lim", "iterations": 4}},
    "vocoder": {"name": "mel", "preset": "speech-8k", "vocoder": {"name": "vocoder", "width": 16, "depth": 2}},
}


def clip(seconds: float, pitch: float = 200.0, seed: int = 0, level: float = 0.3) -> np.ndarray:
    """A tone with overtones that swells and fades, in noise: (n,)."""
    n, random = round(seconds * RATE), np.random.default_rng(seed)
    t = np.arange(n) / RATE
    tone = sum(np.sin(2 * np.pi * k * pitch * t + random.uniform(0, 6)) / k for k in range(1, 6))
    return (level * (0.3 * tone * np.sin(np.pi * (np.arange(n) + 0.5) / n) + 0.02 * random.normal(size=n))).astype("f4")


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> str:
    import soundfile

    soundfile.write(path, samples.T, rate, subtype="FLOAT")
    return str(path)


@pytest.fixture(scope="session")
def audio_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(audio_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(audio_cache))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 clips of 0.2 to 0.43 s: labels 0 and 7, voices theo and ann, each clip with its own pitch."""
    pytest.importorskip("soundfile", reason="needs the extra 'audio'")
    folder = tmp_path_factory.mktemp("clips")
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "split", "label", "voice", "pitch", "type", "text"])
        for i in range(24):
            write(folder / f"{i}.wav", clip(0.2 + i / 100, 150 + 10 * i, i))
            split, text = "valid" if i % 8 == 7 else "train", "low tone" if i < 12 else "a high tone"
            table.writerow([f"{i}.wav", split, [0, 7][i % 2], ["theo", "ann"][i % 4 // 2], 150 + 10 * i, "tone", text])
    return str(folder)


@pytest.fixture(scope="session")
def model(source: str, audio_cache: Path) -> Callable[..., Any]:
    """A function that makes a pipeline of a representation, with random weights; the same one for the same options."""
    from noiseloom.core.backbones import NETWORKS
    from noiseloom.core.denoiser import Denoiser
    from noiseloom.core.pipeline import Pipeline
    from noiseloom.modalities.audio.modality import Audio

    made: dict[str, Any] = {}

    def make(representation: str = "wave", **options: Any) -> Any:
        key = f"{representation} {options}"
        if key not in made:
            torch.manual_seed(0)
            settings = {"preparation": PREPARED, "window": 0.6, **options}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(audio_cache))
                modality = Audio.fitted(source, representation=SPECS[representation], **settings)
            spec = {"name": "dit", **modality.network_options(), "width": 32, "depth": 1, "heads": 2}
            config = {
                "modality": {"name": "audio", **modality.config},
                "network": spec,
                "schedule": "flow",
                **modality.denoiser_options(),
                "sampling": {"steps": 3},
            }
            denoiser = Denoiser(NETWORKS.build(spec), "flow", **modality.denoiser_options())
            for parameter in denoiser.parameters():  # at initialisation it says nothing
                torch.nn.init.normal_(parameter, std=0.2)
            made[key] = Pipeline(modality, denoiser.eval(), config)
        return made[key]

    return make
