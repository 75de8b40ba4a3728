"""The commands as a user types them, on the bundled digits and one's own folder of clips."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
from omegaconf import OmegaConf

from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.reading import read
from noiseloom.modalities.video.writing import write_mp4
from noiseloom.recipes.cli import main
from noiseloom.recipes.train_schema import TrainConfig

NETWORK = ["network.width=36", "network.depth=1", "network.heads=2"]
SMALL = [
    "recipe=video/tiny",
    *NETWORK,
    "modality.preparation.frames=9",
    "trainer.batch_size=8",
    "trainer.warmup=2",
    "trainer.log_every=2",
    "trainer.checkpoint_every=4",
    "trainer.eval_every=12",
]
VIDEO = sorted(path.name.removesuffix(".yaml") for path in (files("noiseloom.recipes.conf") / "recipe/video").iterdir())


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *SMALL, f"out={out}", "trainer.steps=12"])
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", VIDEO)
def test_a_recipe_says_only_what_there_is(name: str) -> None:
    file = files("noiseloom.recipes.conf") / "recipe" / "video" / f"{name}.yaml"
    merged: Any = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(file.read_text()))
    assert bool(merged.component) != bool(merged.modality)
    if merged.modality:
        assert merged.modality.name == "video"
        assert merged.network.width / merged.network.heads >= 6
        assert merged.network.width % merged.network.heads == 0
    if merged.trainer.preview_every:
        assert merged.preview.count <= 8


def test_training_learns_and_leaves_a_checkpoint(trained: Path) -> None:
    told = losses(trained)
    assert told[12] < told[2]
    assert {path.name for path in (trained / "checkpoint").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    config = json.loads((trained / "checkpoint" / "config.json").read_text())
    assert config["data"]["source"] == "moving-digits-tiny"
    assert config["modality"]["conditions"]["labels"]["label"] == [str(digit) for digit in range(10)]
    assert "valid/loss" in config["metrics"]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out, once = tmp_path / "run", tmp_path / "once"
    for folder, steps in ((out, 6), (out, 8), (once, 8)):
        main(["train", *SMALL, f"out={folder}", f"trainer.steps={steps}", "trainer.decay=constant"])
    assert losses(out) == losses(once)
    assert list(losses(out)) == [2, 4, 6, 8]


def test_samples_are_videos_of_what_was_asked(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    asked = ["label=3,8", "count=2", "steps=2", "seed=3", "frames=12"]
    main(["sample", f"checkpoint={trained / 'checkpoint'}", *asked, f"out={out}"])
    assert (out / "index.html").is_file()
    assert [(row["label"], row["frames"]) for row in rows(out)] == [("3,8", "12")] * 2
    clip = read(out / rows(out)[0]["file"])
    assert clip.frames.shape[:3] == (12, 32, 32)
    assert clip.fps == 10
    scores = json.loads((out / "metrics.json").read_text())["metrics"]
    main(["evaluate", "modality=video", f"samples={out}", f"out={tmp_path / 'scores'}"])
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    assert again.keys() == scores.keys()


def test_a_clip_is_predicted_from_the_command_line(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    write_mp4(
        source,
        Clip(np.random.default_rng(0).integers(0, 2, (8, 4, 4, 1), np.uint8).repeat(8, 1).repeat(8, 2) * 255, 10),
    )
    out = tmp_path / "samples"
    asked = ["task=predict", f"input={source}", "known=4", "frames=11", "steps=2", "order=pyramid"]
    main(["sample", f"checkpoint={trained / 'checkpoint'}", *asked, f"out={out}"])
    made, given = read(out / rows(out)[0]["file"]).frames, read(source).frames
    assert made.shape[0] == 11
    off = np.abs(made[:8, ..., 0].astype(int) - given[..., 0]).mean((1, 2))
    assert off[:4].max() < 8 < off[4:].min()  # files are compressed


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("label=x", "unknown label 'x'"),
        ("size=20", "height 20, but 16 or 24"),
        ("task=predict", "task=predict needs an input"),
        ("order=backwards", "backwards"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, asked: str, told: str
) -> None:
    with pytest.raises(SystemExit):
        main(["sample", f"checkpoint={trained / 'checkpoint'}", asked, f"out={tmp_path}"])
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_own_clips_and_pictures_train_and_are_sampled_without_any_class(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from PIL import Image

    folder, random = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    for index, frames in enumerate((3, 6, 12, 12)):
        write_mp4(folder / f"{index}.mp4", Clip(random.integers(0, 256, (frames, 36, 28, 3), np.uint8), 8 + index))
    Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "picture.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    options = ["trainer.steps=3", "trainer.batch_size=2", "trainer.preview_every=0", "trainer.eval_every=0"]
    options += ["modality.preparation.sizes=[[16,16]]", "modality.preparation.frames=9", "trainer.warmup=1"]
    main(["train", "recipe=video/folder", f"data.source={folder}", *NETWORK, *options, f"out={tmp_path / 'run'}"])
    told = capsys.readouterr().err
    assert "broken.mp4" in told
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert config["modality"]["conditions"]["labels"] == {}
    assert config["sampling"]["guidance"]["scale"] == 2.0  # with nothing to guide by, none
    out = tmp_path / "samples"
    main(["sample", f"checkpoint={tmp_path / 'run' / 'checkpoint'}", "steps=2", f"out={out}"])
    assert rows(out)[0]["frames"] == "9"


def test_a_folder_must_be_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "recipe=video/folder"])
    assert "data.source=FILE_OR_FOLDER" in capsys.readouterr().err
