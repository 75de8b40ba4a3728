"""The commands as a user types them, on the bundled notes and one's own folder; and how a wrong scale is told."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
pytest.importorskip("soundfile", reason="needs the extra 'audio'")
import soundfile
import torch
from omegaconf import OmegaConf

from noiseloom.modalities.audio.data import Preparation, open_audio
from noiseloom.modalities.audio.sources import find_clips
from noiseloom.modalities.audio.tiny import INSTRUMENTS, KEYS, NOTES_TINY
from noiseloom.modalities.listing import SPLITS
from noiseloom.recipes.cli import main
from noiseloom.recipes.recipe import Recipe
from noiseloom.recipes.train_schema import TrainConfig

NETWORK = ["network.width=32", "network.depth=1", "network.heads=2", "modality.prediction=x0"]
SMALL = [
    "recipe=audio/tiny",
    *NETWORK,
    "modality.representation.vocoder={name:griffin_lim,iterations:2}",
    "trainer.batch_size=8",
    "trainer.warmup=2",
    "trainer.log_every=2",
    "trainer.checkpoint_every=4",
    "trainer.eval_every=8",
]


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def recipe(name: str, representation: dict[str, Any] | None = None, **data: Any) -> Recipe:
    """A recipe of the package with a small network; its representation and data options may be others."""
    file = files("noiseloom.recipes.conf") / "recipe" / f"{name}.yaml"
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(file.read_text()), {"recipe": name})
    merged.run = "x"
    config: Any = OmegaConf.to_object(merged)
    config.network |= {"width": 32, "depth": 1, "heads": 2}
    config.modality["prediction"] = "x0"
    config.data |= data
    if representation is not None:
        config.modality["representation"] = representation
    return Recipe(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *SMALL, f"out={out}", "trainer.steps=16"])
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tones of two classes at two rates."""
    place = tmp_path_factory.mktemp("sounds")
    for index, (label, rate) in enumerate([("low", 16000), ("low", 22050), ("high", 44100)]):
        (place / label).mkdir(exist_ok=True)
        seconds = np.arange(int(0.4 * rate) + 57 * index) / rate
        tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * index) * seconds)
        soundfile.write(place / label / f"{index}.wav", tone, rate)
    return place


def test_the_bundled_notes_are_what_they_say() -> None:
    clips = find_clips("notes-tiny").clips
    assert Counter(clip.values["label"] for clip in clips) == dict.fromkeys(INSTRUMENTS, len(KEYS))
    assert {clip.values["pitch"] for clip in clips} == set(KEYS)
    assert NOTES_TINY.stat().st_size < 1_500_000
    counts = {name: len(open_audio("notes-tiny", name, preparation=Preparation(8000))) for name in SPLITS}
    assert counts == {"train": 52, "valid": 5, "test": 15}


def test_training_learns_and_leaves_a_checkpoint(trained: Path) -> None:
    told = losses(trained)
    assert told[16] < told[2]
    names = {path.name for path in (trained / "checkpoint").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((trained / "checkpoint" / "config.json").read_text())
    assert config["data"]["source"] == "notes-tiny"
    assert "valid/loss" in config["metrics"]


def test_a_run_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(["train", *SMALL, f"out={out}", "trainer.steps=6", "trainer.decay=constant"])
    main(["train", *SMALL, f"out={out}", "trainer.steps=8", "trainer.decay=constant"])
    once = tmp_path / "once"
    main(["train", *SMALL, f"out={once}", "trainer.steps=8", "trainer.decay=constant"])
    assert losses(out) == losses(once)
    assert list(losses(out)) == [2, 4, 6, 8]


def test_samples_have_the_length_asked_for_and_are_scored(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    asked = ["label=flute", "pitch=60", "duration=0.3", "count=2", "steps=2", "seed=3"]
    main(["sample", f"checkpoint={trained / 'checkpoint'}", *asked, f"out={out}"])
    assert (out / "index.html").is_file()
    rows = list(csv.DictReader((out / "samples.csv").open()))
    assert [(row["label"], float(row["pitch"])) for row in rows] == [("flute", 60.0)] * 2
    for row in rows:
        sound, rate = soundfile.read(out / row["file"])
        assert (len(sound), rate) == (4800, 16000)
    main(["evaluate", "modality=audio", f"samples={out}", f"out={tmp_path / 'scores'}"])
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    assert "pitch_accuracy" in scores


def test_an_unknown_instrument_is_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["sample", f"checkpoint={trained / 'checkpoint'}", "label=tuba", f"out={tmp_path}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tuba" in error
    assert "vibraphone" in error


def test_own_sounds_train_however_few(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = [*NETWORK, "trainer.steps=2", "trainer.preview_every=0", "trainer.eval_every=0", "trainer.warmup=1"]
    main(["train", "recipe=audio/folder", f"data.source={folder}", "trainer.batch_size=8", *options, f"out={tmp_path}"])
    told = capsys.readouterr().err
    assert "label low" in told
    assert "warning" not in told
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["modality"]["conditions"]["labels"] == {"label": ["high", "low"]}
    assert config["data"] == {"source": folder.name, "items": 3}


def test_a_limit_leaves_so_many_clips(folder: Path) -> None:
    assert len(recipe("audio/folder", source=str(folder), limit=2).datasets["train"]) == 2


def test_a_folder_must_be_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "recipe=audio/folder"])
    assert "data.source=FILE_OR_FOLDER" in capsys.readouterr().err


def test_a_right_scale_is_silent_and_a_wrong_one_is_told(capsys: pytest.CaptureFixture) -> None:
    made = recipe("audio/tiny")
    made.check_scale()
    assert not capsys.readouterr().err
    modality: Any = made.modality
    mean, std = modality.mean, modality.std
    modality.std = std / 10
    made.check_scale()
    told = capsys.readouterr().err.splitlines()
    assert "deviate 10 times" in told[0]
    assert "sigma_data is 1" in told[1]
    modality.mean, modality.std = mean + 3 * std, std
    made.check_scale()
    assert "3 deviations off: the statistics are of other data" in capsys.readouterr().err


def test_frames_that_say_nothing_are_told(capsys: pytest.CaptureFixture) -> None:
    made = recipe("audio/tiny")
    dataset: Any = made.datasets["train"]
    data = np.array(dataset.frames.data)
    data[:, 5] = -11.5
    for value, message in ((0.0, "1 of 128 numbers of a frame hardly change"), (np.nan, "not finite")):
        data[0, 0] = value
        made.datasets["train"] = replace(dataset, frames=replace(dataset.frames, data=data))
        made.check_scale()
        assert message in capsys.readouterr().err


def test_sounds_without_any_treble_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 8000)
    recipe("audio/folder", source=str(tmp_path)).check_scale()
    told = capsys.readouterr().err
    assert "1 of 1 clips are of a lower rate, from 8,000 Hz" in told
    recipe("audio/folder", {"name": "mel", "preset": "speech-8k"}, source=str(tmp_path)).check_scale()
    assert "warning" not in capsys.readouterr().err


def test_latents_of_an_untrained_autoencoder_are_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    small = {"name": "autoencoder", "rate": 8000, "width": 4, "n_fft": 64, "strides": [2], "widths": [8, 8], "depth": 1}
    recipe("audio/folder", {"name": "latent", "autoencoder": small}, source=str(folder)).check_scale()
    assert "untrained" in capsys.readouterr().err


def test_a_network_too_narrow_for_the_noise_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from noiseloom.recipes.recipe import Recipe
    from noiseloom.recipes.train_schema import TrainConfig

    def warned(width: int, prediction: str) -> bool:
        representation = {"name": "wave", "rate": 8000, "patch": 40}
        modality = {"name": "audio", "representation": representation, "prediction": prediction}
        network = {"name": "dit", "width": width, "depth": 1, "heads": 2}
        config = TrainConfig("r", modality=modality, data={"source": "notes-tiny"}, network=network)
        Recipe(config).check_scale()
        return "samples will stay noisy" in capsys.readouterr().err

    assert warned(32, "velocity")
    assert not warned(48, "velocity")
    assert not warned(32, "x0")
