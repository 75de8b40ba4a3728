"""The command line as a person types it. What a command does with its configuration is tested where it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noiseloom import __version__
from noiseloom.core.samplers import SAMPLERS
from noiseloom.recipes import registries
from noiseloom.recipes.catalogue import KINDS, recipes
from noiseloom.recipes.cli import main
from noiseloom.recipes.commands import COMMANDS, schema
from noiseloom.recipes.schema import options

TINY = "recipe=molecules/qm9-tiny"


class Outcome(SimpleNamespace):
    status: int
    out: str
    error: str
    configs: list[Any]


@pytest.fixture
def noiseloom(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs a command line in an empty folder; the commands record their configuration instead of working."""
    configs: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it: put back afterwards
    for command in COMMANDS:
        monkeypatch.setitem(sys.modules, f"noiseloom.recipes.{command}", SimpleNamespace(run=configs.append))

    def run(*arguments: str) -> Outcome:
        configs.clear()
        try:
            main(arguments)
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Outcome(status=status, out=captured.out, error=captured.err, configs=list(configs))

    return run


def one_line(outcome: Outcome, *words: str) -> None:
    """The outcome of something badly asked for: one line that holds the words."""
    assert outcome.status == 2
    assert outcome.configs == []
    assert outcome.error.count("\n") == 1, outcome.error
    assert [word for word in words if word not in outcome.error] == [], outcome.error


def test_help_names_the_commands_and_version_is_told(noiseloom: Any) -> None:
    for line in ([], ["--help"], ["-h"]):
        outcome = noiseloom(*line)
        assert outcome.status == 0
        assert all(f"  {name} " in outcome.out for name in (*COMMANDS, "list"))
    assert noiseloom("--version").out == f"noiseloom {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_and_every_option_with_its_meaning(noiseloom: Any, command: str) -> None:
    out = noiseloom(command, "--help").out
    assert f"noiseloom {command} " in out.split("options and their defaults")[0]
    for entry in options(schema(command)):
        assert entry.help, f"{entry.key} is not documented"
        assert f"  {entry.key}" in out


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from noiseloom.recipes.cli import main; main(['sample', '--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_defaults_are_the_schemas(noiseloom: Any) -> None:
    for command, needed in (("demo", {}), ("sample", {"checkpoint": "x"})):
        (config,) = noiseloom(command, *(f"{key}={value}" for key, value in needed.items())).configs
        assert config == schema(command)(**needed)


def test_nothing_is_written_beside_what_a_command_writes(noiseloom: Any, tmp_path: Path) -> None:
    assert noiseloom("demo").status == 0
    assert list(tmp_path.iterdir()) == []


def test_train_composes_a_recipe_with_overrides(noiseloom: Any) -> None:
    outcome = noiseloom("train", TINY, "trainer.steps=7", "trainer.lr=1e-4", "run=mine", "data.source=a.sdf")
    (config,) = outcome.configs
    assert (config.recipe, config.out) == ("molecules/qm9-tiny", "runs/mine")
    assert (config.trainer.steps, config.trainer.lr) == (7, 1e-4)
    assert config.modality["name"] == "molecules"
    assert config.data["source"] == "a.sdf"


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_composes_and_names_what_is_registered(noiseloom: Any, recipe: str) -> None:
    outcome = noiseloom("train", f"recipe={recipe}")
    assert outcome.error == ""
    (config,) = outcome.configs
    assert config.recipe == recipe
    assert config.out == f"runs/{recipe}"
    if recipe == "distill":  # the network is its teacher's
        assert config.network == {}
        return
    kind, registry = (config.component, "components") if config.component else (config.network, "networks")
    assert kind["name"] in registries.registry(registry)


def test_a_request_is_whatever_sample_does_not_know(noiseloom: Any) -> None:
    line = "checkpoint=molecules-qm9 count=64 alpha=75 formula=C7H10O2 properties.Cv=30 scaffold=file.sdf"
    (config,) = noiseloom("sample", *line.split()).configs
    assert (config.checkpoint, config.count) == ("molecules-qm9", 64)
    assert config.request == {
        "alpha": 75,
        "formula": "C7H10O2",
        "properties": {"Cv": 30},
        "scaffold": "file.sdf",
    }


def test_values_that_hydra_cannot_read_are_taken_as_they_are(noiseloom: Any) -> None:
    written = {
        "a": "CC(=O)O",
        "b": "[NH3+]CC(=O)[O-]",
        "c": r"F/C=C\F",
        "d": "it's",
        "e": "two words (1)/x.sdf",
        "f": "C#N",
    }
    (config,) = noiseloom("sample", "checkpoint=x", *(f"{key}={value}" for key, value in written.items())).configs
    assert config.request == written


def test_a_comma_is_part_of_a_value_unless_it_is_a_sweep(noiseloom: Any) -> None:
    written = {"label": "3,8", "text": "a bell, far away", "input": "a,b.mp4", "it": "it's,so", "c": "a,b\\"}
    line = ["checkpoint=x", "out=a,b", *(f"{key}={value}" for key, value in written.items())]
    (config,) = noiseloom("sample", *line).configs
    assert config.request == written
    assert config.out == "a,b"
    lists = ["label=[3,8]", "frames=[[0,1],[2,3]]", "crop={a:1,b:2}", "text='3,8'", 'also="3,8"']
    (config,) = noiseloom("sample", "checkpoint=x", *lists).configs
    plain = {"label": [3, 8], "frames": [[0, 1], [2, 3]], "crop": {"a": 1, "b": 2}}
    assert config.request == {**plain, "text": "3,8", "also": "3,8"}
    for sweep in ("--multirun", "-m", "hydra.mode=MULTIRUN"):
        configs = noiseloom("sample", "checkpoint=x", "label=3,8", "text='3,8'", sweep).configs
        assert [c.request for c in configs] == [{"label": label, "text": "3,8"} for label in (3, 8)]


def test_what_is_registered_is_chosen_by_name_and_given_options(noiseloom: Any) -> None:
    (config,) = noiseloom("sample", "checkpoint=x", "sampler=ddim", "sampler.eta=1", "schedule=cosine").configs
    assert config.sampler == {"name": "ddim", "eta": 1}
    assert config.schedule == {"name": "cosine"}
    assert (config.grid, config.steps) == ({}, None)  # the checkpoint's own
    line = ["order=pyramid", "order.lag=2", "caching=first_block", "caching.threshold=0.05"]
    (config,) = noiseloom("sample", "checkpoint=x", *line).configs
    assert config.order == {"name": "pyramid", "lag": 2}
    assert config.caching == {"name": "first_block", "threshold": 0.05}


def test_guidance_is_classifier_free_unless_another_is_named(noiseloom: Any) -> None:
    for line, meant in (
        ("guidance=2", {"name": "classifier_free", "scale": 2}),
        ("guidance.scale=1.5", {"name": "classifier_free", "scale": 1.5}),
        ("guidance=2 guidance.interval=[0.3,5]", {"name": "classifier_free", "scale": 2, "interval": [0.3, 5]}),
        (
            "guidance=per_condition guidance.scales.given=1.5 guidance.scales.label=3",  # guidance over history
            {"name": "per_condition", "scales": {"given": 1.5, "label": 3}},
        ),
    ):
        (config,) = noiseloom("sample", "checkpoint=x", *line.split()).configs
        assert config.guidance == meant


def test_a_sweep_runs_every_combination_in_its_own_folder(noiseloom: Any, tmp_path: Path) -> None:
    configs = noiseloom("sample", "checkpoint=a/b", "seed=1,2", "sampler=ddim,euler", "--multirun").configs
    assert [(c.seed, c.sampler["name"]) for c in configs] == [(1, "ddim"), (1, "euler"), (2, "ddim"), (2, "euler")]
    assert configs[1].out == "samples/seed=1,sampler.name=euler"
    assert len({c.out for c in configs}) == 4


def test_cfg_prints_and_does_not_run(noiseloom: Any) -> None:
    outcome = noiseloom("train", TINY, "trainer.steps=7", "--cfg", "job")
    assert outcome.configs == []
    assert "  steps: 7" in outcome.out


def test_badly_asked_is_one_line_with_the_choices(noiseloom: Any) -> None:
    one_line(
        noiseloom("trian"),
        "unknown command 'trian'",
        "Did you mean 'train'?",
        "demo, train, sample, evaluate, likelihood, ema, list",
    )
    one_line(noiseloom("train"), "which recipe?", "molecules/qm9-tiny")
    one_line(noiseloom("train", "recipe=molecules/qm,audio/tiny"), "unknown recipe 'molecules/qm,audio/tiny'")
    one_line(noiseloom("train", "recipe=molecules/qm"), "unknown recipe 'molecules/qm'", "molecules/qm9-tiny")
    one_line(
        noiseloom("train", TINY, "trainer.stesp=1"), "'trainer.stesp'", "Did you mean 'trainer.steps'?", "trainer.lr"
    )
    one_line(noiseloom("train", TINY, "steps=1"), "'steps'", "Did you mean 'trainer.steps'?")
    one_line(noiseloom("train", TINY, "trainer.steps=many"), "trainer.steps", "'many'", "Integer")
    one_line(noiseloom("train", TINY, "trainer.steps=1,2"), "trainer.steps", "'1,2'", "add --multirun")
    one_line(noiseloom("train", TINY, "trainer.decay=slow"), "'slow'", "cosine")
    one_line(noiseloom("train", TINY, "network=gnn"), "unknown network 'gnn'", "dit")
    one_line(noiseloom("train", TINY, "network.wdith=3"), "'wdith'", "network.width")
    one_line(noiseloom("train", TINY, "schedule=cosin"), "unknown schedule 'cosin'", "Did you mean 'cosine'?")
    one_line(noiseloom("train", TINY, "steps"), "cannot read 'steps'", "key=value")
    one_line(noiseloom("train", TINY, "--quick"), "--quick")
    one_line(noiseloom("sample"), "needs checkpoint=")
    one_line(noiseloom("sample", "checkpoint=x", "count=few"), "count", "'few'")
    one_line(noiseloom("sample", "checkpoint=x", "sampler=magic"), "unknown sampler 'magic'", "ddim")
    one_line(noiseloom("evaluate"), "modality=", "samples=")
    one_line(noiseloom("evaluate", "modality=molcules", "samples=x"), "'molcules'", "Did you mean 'molecules'?")
    one_line(noiseloom("evaluate", "modality=molecules", "sample=x"), "'sample'", "Did you mean 'samples'?")
    one_line(noiseloom("list", "sampler"), "'sampler'", "Did you mean 'samplers'?", "recipes")


def test_a_pickled_configuration_is_refused(noiseloom: Any, tmp_path: Path) -> None:
    one_line(noiseloom("demo", "--experimental-rerun", "config.pickle"), "switched off")
    one_line(noiseloom("demo", "--experimental=config.pickle"), "switched off")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.sdf"), "No such file or directory: x.sdf"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_expected_errors_are_one_line(
    noiseloom: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str
) -> None:
    def run(config: Any) -> None:
        raise raised

    monkeypatch.setitem(sys.modules, "noiseloom.recipes.demo", SimpleNamespace(run=run))
    outcome = noiseloom("demo")
    assert (outcome.status, outcome.error) == (1, f"noiseloom demo: {told}\n")
    monkeypatch.setenv("NOISELOOM_TRACEBACK", "1")
    with pytest.raises(type(raised)):
        noiseloom("demo")


def test_a_defect_keeps_its_traceback(noiseloom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "noiseloom.recipes.demo", SimpleNamespace(run=lambda config: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        noiseloom("demo")


def test_a_status_is_passed_on_and_ctrl_c_is_quiet(noiseloom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "noiseloom.recipes.demo", SimpleNamespace(run=lambda config: 3))
    assert noiseloom("demo").status == 3

    def interrupted(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "noiseloom.recipes.demo", SimpleNamespace(run=interrupted))
    outcome = noiseloom("demo")
    assert (outcome.status, outcome.error) == (130, "noiseloom demo: stopped\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("noiseloom ", ["demo", "train", "sample", "evaluate", "likelihood", "ema", "list"]),
        ("noiseloom tr", ["train"]),
        ("noiseloom train ", ["recipe="]),
        (f"noiseloom train {TINY} trainer.ste", ["trainer.steps="]),
        ("noiseloom train recipe=molecules/qm9-", ["recipe=molecules/qm9-tiny"]),
        ("noiseloom list sam", ["samplers"]),
        ("noiseloom demo ", ["out=", "seed="]),
        ("/usr/bin/noiseloom sample cou", ["count="]),
        ("noiseloom nothing ", []),
    ],
)
def test_tab_completion(noiseloom: Any, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert noiseloom("-sc", "query=bash").out.split() == words


def test_tab_completion_installs(noiseloom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/noiseloom"])
    out = noiseloom("-sc", "install=bash").out
    assert out.strip().endswith("hydra_bash_completion noiseloom")
    assert subprocess.run(["bash", "-n", "-c", out], check=False).returncode == 0


def test_list_shows_everything_that_has_a_name(noiseloom: Any) -> None:
    outcome = noiseloom("list")
    assert outcome.status == 0
    assert [kind for kind in KINDS if f"  {kind} " not in outcome.out] == []
    schedules = noiseloom("list", "schedules").out
    assert "flow" in schedules
    assert "shift=3.0" in schedules
    assert "alpha = 1 - t" in schedules


def test_list_says_what_samplers_are(noiseloom: Any) -> None:
    lines = noiseloom("list", "samplers").out.splitlines()
    head = lines[1]
    facts = {line.split()[0]: line for line in lines[2:] if line[2] != " "}
    assert set(facts) == set(SAMPLERS)
    starts = [head.index(word) for word in ("order", "calls", "noise", "reference")]

    def said(name: str) -> list[str]:
        ends = (*starts[1:], None)
        return [facts[name][start:end].strip() for start, end in zip(starts, ends, strict=True)]

    assert said("ddim") == ["1", "1", "if eta > 0", "Song et al. 2021"]
    assert said("heun") == ["2", "2", "no", "Karras et al. 2022"]
    assert said("ddpm") == ["1", "1", "yes", "Ho et al. 2020"]
    assert said("pndm") == ["2", "varies", "no", "Liu et al. 2022"]
    assert said("deis") == ["3", "1", "no", "Zhang and Chen 2023"]
    assert any("predictor_order=3" in line for line in lines)
    assert [name for name in facts if not said(name)[3]] == []


def test_the_program_runs_as_a_module() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "noiseloom.recipes.cli", "evaluate"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("noiseloom evaluate: needs modality=")
