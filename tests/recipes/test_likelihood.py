"""``noiseloom likelihood`` and ``noiseloom ema`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("torchaudio", reason="needs the extra 'audio'")
pytest.importorskip("soundfile", reason="needs the extra 'audio'")
import torch

from noiseloom.core.training import reconstruct
from noiseloom.recipes.cli import main

SMALL = [
    "recipe=audio/tiny",
    "network.width=32",
    "network.depth=1",
    "network.heads=2",
    "modality.representation.vocoder={name:griffin_lim,iterations:2}",
    "trainer.batch_size=8",
    "trainer.warmup=2",
    "trainer.steps=8",
    "trainer.ema_snapshots=2",
    "trainer.eval_every=8",
    "half=false",
]
DATA = ["data.source=notes-tiny", "split=valid", "count=3", "batch_size=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", *SMALL, f"out={out}"])
    return out


def test_averages_of_another_width(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ema", f"run={trained}", "std=0.08"])
    written = trained / "ema-0.08"
    assert f"checkpoint={written}" in capsys.readouterr().out
    weights, finished = (load_file(f / "model.safetensors") for f in (written, trained / "checkpoint"))
    wanted = reconstruct(trained / "ema", 0.08)
    assert weights.keys() == finished.keys()
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())
    assert any(not torch.equal(weights[name], finished[name]) for name in wanted)
    config = json.loads((written / "config.json").read_text())
    assert config["training"]["ema_std"] == 0.08
    main(["sample", f"checkpoint={written}", "count=1", "steps=2", f"out={tmp_path / 'clips'}"])


def test_an_average_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["ema", f"run={tmp_path}", "std=0.08"])
    assert leaving.value.code
    assert "no finished run" in capsys.readouterr().err


def test_likelihood(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of an item do not depend on its batch, the bound lies above, and bins add their bits."""

    def bits(*options: str) -> tuple[float, float]:
        main(["likelihood", f"checkpoint={trained / 'checkpoint'}", *DATA, f"out={tmp_path}", *options])
        metrics = json.loads((tmp_path / "likelihood.json").read_text())["metrics"]
        assert metrics["bits_per_dimension"]["n"] == 3
        return metrics["bits_per_dimension"]["value"], metrics["dimensions"]["value"]

    exact, dimensions = bits("steps=8")
    assert "probability-flow ODE, rk4, 8 steps" in capsys.readouterr().out
    assert dimensions > 64
    assert bits("steps=8", "batch_size=3")[0] == pytest.approx(exact, abs=1e-4)
    assert bits("steps=8", "bin_width=0.25")[0] == pytest.approx(exact + 2, abs=1e-6)
    assert bits("steps=8", "conditions=false")[0] != exact
    assert bits("bound=true", "steps=16")[0] > exact - 0.1


def test_molecules_have_no_density(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit", reason="needs the extra 'molecules'")
    pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
    with pytest.raises(SystemExit):
        main(["likelihood", "checkpoint=molecules-qm9", "data.source=qm9"])
    error = capsys.readouterr().err
    assert "atoms, charges, bonds are classes" in error
    with pytest.raises(SystemExit):
        main(["likelihood", "checkpoint=audio-digits"])
    assert "no data" in capsys.readouterr().err
