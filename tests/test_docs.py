"""What the documents say works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from noiseloom.core.registry import unknown
from noiseloom.recipes.registries import registry
from noiseloom.recipes.usage import SUMMARY

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Trains the tutorial's modality for a few steps and samples from it, as the command line would.
RUN = """
import torch
from noiseloom.core.backbones import NETWORKS, dit
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import Denoising
from noiseloom.core.randomness import StepRandomness
from noiseloom.core.samplers import generate

data = ToneModality.fitted("none").dataset("none", "train")
modality = MODALITIES.build("tones")
network = NETWORKS.build({"name": "dit", "width": 32, "depth": 1, "heads": 2, **modality.network_options()})
denoiser, objective = Denoiser(network, "flow", **modality.denoiser_options()), Denoising()
optimizer, losses = torch.optim.Adam(denoiser.parameters(), 3e-3), []
for step in range(40):
    example = modality.encode([data[(37 * step + i) % len(data)] for i in range(16)])
    loss = objective(denoiser, example, StepRandomness(0, step, range(16), 16)).total.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss))
assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
layout = modality.layout(Request(pitch=7), modality.plans(Request(), [0, 1]))
x = generate(denoiser, layout.start, cond=layout.cond, space=layout.space, steps=4, seeds=0)
tones = modality.decode(x, layout)
(path,) = modality.save(tones, Path("."), seeds=[0, 1], report=None)
again = modality.load_artifacts(path)
assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(tones, again, strict=True))
print(modality.evaluate(again).rows[0].n)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_modality_of_the_tutorial_trains_and_samples(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "adding-a-modality.md", "python")
    (tmp_path / "tones.py").write_text(code + RUN)
    command = [sys.executable, "tones.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"]


def test_the_core_alone_samples_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks(ROOT / "README.md", "python") if "generate" in block)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert re.fullmatch(r"tensor\((2\.0|1\.9)\d+\)", capsys.readouterr().out.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_documents_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_exist(page: Path) -> None:
    lines = re.findall(r"\bnoiseloom ([a-z]+)((?: [\w./*]+=\S+)*)", "\n".join(blocks(page, "bash")))
    assert [unknown("command", command, SUMMARY) for command, _ in lines if command not in SUMMARY] == []


def test_samplers_and_grids_on_the_page_of_choices_are_registered() -> None:
    text = (ROOT / "docs" / "choosing-a-sampler.md").read_text(encoding="utf-8")
    names = set(re.findall(r"(?:sampler|grid|schedule)=(?!sampler)(\w+)", text))
    names |= set(re.findall(r"`((?:dpmpp|ddim|ddpm|heun|unipc)\w*)`", text))
    known = {name for kind in ("samplers", "grids", "schedules") for name in registry(kind)}
    assert sorted(names - known) == []


def test_every_file_that_the_table_of_methods_names_is_there() -> None:
    named = set(re.findall(r"(?:core|tests|recipes)/[\w/]+\.py", (ROOT / "docs" / "methods.md").read_text()))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
