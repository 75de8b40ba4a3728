"""The commands as a user types them, on the bundled data: train, stop, go on, sample, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
import noiseloom
from noiseloom.recipes.cli import main

SMALL = [
    "recipe=molecules/qm9-tiny",
    "network.width=32",
    "network.layers=2",
    "network.pairs=8",
    "network.irreps=8x1o",
    "trainer.batch_size=16",
    "trainer.warmup=4",
    "trainer.log_every=2",
    "trainer.checkpoint_every=5",
    "trainer.eval_every=10",
    "trainer.eval_samples=16",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *SMALL, f"out={out}", "trainer.steps=20", "trainer.preview_every=20", "preview.count=4"])
    return out


def test_training_learns_and_leaves_what_it_should(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert {"loss/positions", "loss/atoms", "loss/charges", "loss/bonds"} <= rows[0].keys()
    assert any("valid/loss" in row for row in rows)
    assert any("preview/valid" in row for row in rows)
    assert (trained / "previews" / "step_00000020" / "index.html").is_file()
    card = (trained / "checkpoint" / "README.md").read_text()
    assert "qm9-tiny" in card
    assert {path.name for path in (trained / "checkpoint").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_a_run_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    once = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    main(["train", *SMALL, f"out={out}", "trainer.steps=6"])
    main(["train", *SMALL, f"out={out}", "trainer.steps=8"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8]
    assert rows[0]["loss"] == once["loss"]


def test_samples_of_a_checkpoint_are_files_and_scores(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "samples"
    main(["sample", f"checkpoint={trained / 'checkpoint'}", "count=5", "steps=4", f"out={out}", "seed=3"])
    printed = capsys.readouterr().out
    assert "valid" in printed
    assert "real data" in printed
    names = {path.name for path in out.iterdir()}
    assert {"samples.sdf", "samples.csv", "samples.png", "index.html", "metrics.json"} <= names
    assert (out / "samples.sdf").read_text().count("$$$$") == 5
    main(["evaluate", "modality=molecules", f"samples={out / 'samples.sdf'}", f"out={tmp_path / 'scores'}"])
    again, first = (json.loads((place / "metrics.json").read_text())["metrics"] for place in (tmp_path / "scores", out))
    for name in ("valid", "connected", "molecules_stable_by_bonds", "molecules_stable_by_lookup"):
        assert again[name]["value"] == first[name]["value"]


def test_python_gives_what_the_command_line_gives(trained: Path) -> None:
    pipe = noiseloom.load(trained / "checkpoint")
    batch = pipe.sample(3, steps=4, seed=3, progress=False)
    same = pipe.sample(3, num_inference_steps=4, seed=3, batch_size=1, progress=False)
    for a, b in zip(batch, same, strict=True):
        assert (a.GetConformer().GetPositions() - b.GetConformer().GetPositions()).__abs__().max() < 1e-3
    with pytest.raises(ValueError, match=r"no option .fromula.*Did you mean .formula."):
        pipe.sample(1, fromula="CH4")


def test_zero_molecules_is_a_clear_outcome(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "none"
    main(["sample", f"checkpoint={trained / 'checkpoint'}", "count=0", f"out={out}"])
    assert (out / "samples.sdf").is_file()
    assert (out / "index.html").is_file()


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("config.json", lambda c: c["network"].update(name="os.system"), "unknown network 'os.system'"),
        ("config.json", lambda c: c["network"].update(_target_="os.system"), "_target_"),
        ("config.json", lambda c: c["modality"].update(name="../../evil"), "evil"),
        ("model.safetensors", None, "model.safetensors"),
        ("pickle", None, "pytorch_model.bin"),
    ],
)
def test_a_checkpoint_that_was_tampered_with_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, edit: object, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in (trained / "checkpoint").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if callable(edit):
        config = json.loads((folder / name).read_text())
        edit(config)
        (folder / name).write_text(json.dumps(config))
    elif name == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    with pytest.raises(SystemExit):
        main(["sample", f"checkpoint={folder}", "count=1", f"out={tmp_path / 'out'}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert "Traceback" not in error


def test_a_less_trained_checkpoint_guides_by_its_name(trained: Path) -> None:
    """Autoguidance: away from a run of 20 steps, the bundled weights; by themselves they are not changed."""

    def places(samples: Any) -> Any:
        return samples[0].GetConformer().GetPositions()

    pipe = noiseloom.load("molecules-qm9")
    told = {"seed": 0, "steps": 2, "atoms": 9, "progress": False}
    plain, same, away = (
        pipe.sample(
            1, **told, **({"guidance": {"name": "autoguidance", "guide": str(guide), "scale": 2}} if guide else {})
        )
        for guide in ("", "molecules-qm9", trained / "checkpoint")
    )
    assert np.allclose(places(plain), places(same), atol=1e-3)
    assert not np.allclose(places(plain), places(away), atol=1e-2)
    with pytest.raises(ValueError, match=r"audio-digits cannot guide this checkpoint: it is of \('audio', "):
        pipe.sample(1, **told, guidance={"name": "autoguidance", "guide": "audio-digits"})
