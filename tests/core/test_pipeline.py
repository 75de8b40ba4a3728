"""Loading, sampling, saving: with a modality of number sequences whose exact denoiser is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noiseloom.core.pipeline import CheckpointError, Pipeline, load_pretrained
from noiseloom.core.registry import UnknownName
from tests.core.toy_modality import CONFIG, Numbers, build, pipeline


def load(directory: Path) -> Pipeline:
    return Pipeline.from_pretrained(directory, build, device="cpu")


def quiet(pipe: Pipeline, count: int | None = None, **options: Any) -> list[list[float]]:
    return list(pipe.sample(count, progress=False, **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pipeline().save_pretrained(tmp_path / "numbers")


# Sampling


def test_samples_have_the_distribution_of_the_data() -> None:
    values = torch.tensor(quiet(pipeline(), 4000, length=3, steps=20))
    assert values.mean().item() == pytest.approx(1.0, abs=0.03)
    assert values.std().item() == pytest.approx(0.5, abs=0.03)
    assert torch.corrcoef(values.T)[0, 1].abs().item() < 0.06


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pipe = pipeline()
    for options in ({}, {"sampler": "ddpm", "steps": 5}):
        whole = quiet(pipe, 12, seed=5, **options)
        for other in (
            quiet(pipe, 12, seed=5, batch_size=1, **options),
            quiet(pipe, 7, seed=5, batch_size=3, **options),
        ):
            for one, two in zip(whole, other, strict=False):
                assert one == pytest.approx(two, abs=1e-5)
    assert len({len(row) for row in whole}) > 1
    assert quiet(pipe, 3, seed=6) != whole[:3]


def test_batches_hold_samples_of_like_size_and_no_more_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    layout = Numbers.layout

    def watched(self: Numbers, request: Any, plans: list[Any]) -> Any:
        seen.append([plan.size for plan in plans])
        return layout(self, request, plans)

    monkeypatch.setattr(Numbers, "layout", watched)
    lengths = [len(row) for row in quiet(pipeline(), 50, batch_size=8)]
    assert [len(sizes) for sizes in seen] == [8] * 6 + [2]
    assert [size for sizes in seen for size in sizes] == sorted(lengths)


def test_the_seed_of_a_sample_makes_it_again() -> None:
    pipe = pipeline()
    samples = pipe.sample(6, seed=1, progress=False)
    assert len(set(samples.seeds)) == 6
    assert all(seed < 2**53 for seed in samples.seeds)
    again = quiet(pipe, seed=samples.seeds[4:])
    assert [again[0], again[1]] == [pytest.approx(row, abs=1e-5) for row in samples[4:]]
    with pytest.raises(ValueError, match="2 samples need as many seeds, got 3"):
        quiet(pipe, 2, seed=[1, 2, 3])


def test_names_of_diffusers_are_understood() -> None:
    pipe = pipeline()
    plain = quiet(pipe, 2, steps=3, guidance=2.0, seed=7, level=4.0)
    assert quiet(pipe, 2, num_inference_steps=3, guidance_scale=2.0, seed=7, level=4.0) == plain
    assert quiet(pipe, 2, steps=3, seed=7, level=4.0) != plain
    one = torch.Generator().manual_seed(11)
    assert quiet(pipe, 2, generator=one) == quiet(pipe, 2, seed=11)
    with pytest.raises(ValueError, match="steps and num_inference_steps are the same"):
        quiet(pipe, 2, steps=3, num_inference_steps=4)


def test_guidance_moves_samples_away_from_the_unconditional_ones() -> None:
    """The estimates' means are 4 with and 1 without the condition: at scale 2 the samples' mean is past 4."""
    pipe = pipeline()
    for guidance, low, high in ((None, 3.9, 4.1), (2.0, 5.0, 7.5)):
        values = torch.tensor(quiet(pipe, 500, length=2, level=4.0, guidance=guidance))
        assert low < values.mean().item() < high
    spec = {"name": "classifier_free", "scale": 2.0}
    assert quiet(pipe, 2, level=4.0, guidance=spec) == quiet(pipe, 2, level=4.0, guidance=2.0)


def test_a_scale_changes_nothing_else_of_the_checkpoints_own_guidance() -> None:
    kept = {"name": "classifier_free", "scale": 1.5, "keep": ["level"]}
    pipe = Pipeline(pipeline().modality, pipeline().denoiser, {**CONFIG, "sampling": {"guidance": kept}})
    wanted = {"name": "classifier_free", "scale": 3.0}
    for asked in (3.0, wanted):
        assert pipe.sample(1, level=4.0, guidance=asked, progress=False).settings["guidance"] == {**kept, "scale": 3.0}
    other = {"name": "per_condition", "scales": {"level": 2.0}}
    assert pipe.sample(1, level=4.0, guidance=other, progress=False).settings["guidance"] == other
    assert pipe.sample(1, level=4.0, guidance=1, progress=False).settings["guidance"] == 1


def test_known_parts_are_returned_as_they_were_given() -> None:
    assert all(row[0] == 7.25 and abs(row[1]) < 4 for row in quiet(pipeline(), 8, first=7.25))


def test_a_long_sample_is_made_in_windows_and_streamed() -> None:
    pipe = pipeline()
    (whole,) = quiet(pipe, 1, length=10, window=4, seed=3)
    pieces = list(pipe.stream(length=10, window=4, seed=3))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert [number for piece in pieces for number in piece] == whole
    assert whole[:4] == pytest.approx(quiet(pipe, 1, length=4, seed=3)[0])  # the sample's own noise comes first
    assert whole[4:8] != pytest.approx(whole[:4])
    together = quiet(pipe, 3, length=10, window=4, seed=3)
    assert together[0] == pytest.approx(whole, abs=1e-5)


def test_a_sample_without_windows_is_one_piece() -> None:
    assert list(pipeline().stream(length=5, seed=2, steps=3)) == quiet(pipeline(), 1, length=5, seed=2, steps=3)
    broken = pipeline()
    with torch.no_grad():
        broken.denoiser.network.std.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        list(broken.stream(length=5))
    with pytest.raises(ValueError, match="no option 'lenght'"):
        list(pipeline().stream(lenght=5))


def test_a_layout_may_say_where_to_start_and_what_to_wrap() -> None:
    pipe = pipeline()
    assert quiet(pipe, 2, length=3, strength=0.0) == [[7.0] * 3] * 2
    near, far = (torch.tensor(quiet(pipe, 300, length=3, steps=20, strength=s)).mean() for s in (0.3, 0.9))
    assert 1 < far < near < 7
    plain, raised = (torch.tensor(quiet(pipe, 300, length=3, steps=20, up=up)).mean() for up in (0.0, 0.5))
    assert raised > plain + 0.4


def test_conditions_of_the_checkpoint_are_options_too() -> None:
    pipe = pipeline()
    assert pipe.request(shift=2.0).conditions == {"shift": 2.0}
    assert pipe.request(shift=2.0, conditions={"other": 1.0}).conditions == {"other": 1.0, "shift": 2.0}
    assert pipe.request(level=2.0).conditions == {}  # a field of the request comes first
    with pytest.raises(ValueError, match=r"no option 'shfit'.*Did you mean 'shift'.*Choices: .*sampler.*window.*shift"):
        quiet(pipe, 1, shfit=2.0)


def test_the_schedule_may_be_another_than_the_trained_one() -> None:
    values = torch.tensor(quiet(pipeline(), 2000, length=2, steps=30, schedule="vp"))
    assert values.mean().item() == pytest.approx(1.0, abs=0.05)
    assert values.std().item() == pytest.approx(0.5, abs=0.05)


def test_settings_come_from_the_checkpoint_and_the_call_wins() -> None:
    pipe = pipeline(sampling={"sampler": "euler", "steps": 3, "batch_size": 2})
    own = pipe.sample(3, progress=False)
    assert (own.settings["sampler"], own.settings["steps"], own.settings["batch_size"]) == ("euler", 3, 2)
    assert pipe.sample(3, steps=4, progress=False).settings["steps"] == 4
    times = {"name": "explicit", "times": [1.0, 0.4, 0.0]}
    assert pipe.sample(1, grid=times, progress=False).settings["steps"] == 2
    with pytest.raises(ValueError, match="has 2 steps, not 5"):
        pipe.sample(1, grid=times, steps=5, progress=False)
    with pytest.raises(ValueError, match="no sampling setting stepz"):
        pipeline(sampling={"stepz": 3}).sample(1, progress=False)


def test_bf16_gives_nearly_the_same() -> None:
    pipe = pipeline()
    low, high = (torch.tensor(quiet(pipe, 20, length=3, precision=p)) for p in ("bf16", "fp32"))
    assert (low - high).abs().max() < 0.1
    with pytest.raises(ValueError, match="Choices: fp32, bf16"):
        quiet(pipe, 1, precision="half")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lenght": 3}, "Did you mean 'length'"),
        ({"sampler": "dpm"}, "Choices: .*dpmpp_2m"),
        ({"grid": "karas"}, "Did you mean 'karras'"),
        ({"guidance": {"name": "cfgg"}}, "Choices: .*classifier_free"),
        ({"steps": 0}, "at least 1 step"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"count": -1}, "count must not be negative"),
    ],
)
def test_what_is_unknown_is_refused_with_the_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline().sample(**{"count": 1, "progress": False, **options})


def test_failed_samples_are_counted_and_keep_their_place(tmp_path: Path) -> None:
    pipe = pipeline(modality={"name": "test-numbers", "limit": 4.0})
    samples = pipe.sample(40, progress=False)
    assert 0 < samples.failed < 40
    assert samples.failed == sum(row is None for row in samples)
    with torch.no_grad():
        pipe.denoiser.network.std.fill_(math.nan)
    assert pipe.sample(3, progress=False).failed == 3


def test_no_samples_are_an_empty_list() -> None:
    assert quiet(pipeline(), 0) == []


def test_samples_save_themselves_and_are_scored_once(tmp_path: Path) -> None:
    pipe = pipeline()
    samples = pipe.sample(3, progress=False)
    assert pipe.modality.evaluated == 0
    (path,) = samples.save(tmp_path / "new" / "folder")
    written = json.loads(path.read_text())
    assert (written["numbers"], written["seeds"], written["report"]) == (list(samples), samples.seeds, {"count": 3.0})
    assert samples.report == {"count": 3.0}
    assert pipe.modality.evaluated == 1


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was(folder: Path) -> None:
    pipe = load(folder)
    assert not pipe.denoiser.training
    assert pipe.config == {"format": 1, **CONFIG}
    assert quiet(pipe, 4) == quiet(pipeline(), 4)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = pipe.save_pretrained(folder.with_name("again"))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_weights_of_the_modality_are_stored_and_come_back(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    pipe = pipeline()
    pipe.modality.unit = torch.tensor([3.0])
    path = pipe.save_pretrained(folder) / "model.safetensors"
    stored = load_file(path)
    assert stored["modality.unit"].item() == 3
    assert quiet(load(folder), 2, seed=1) == quiet(pipe, 2, seed=1) != quiet(pipeline(), 2, seed=1)
    without = {name: value for name, value in stored.items() if not name.startswith("modality.")}
    for changed in (without, {**without, "modality.unit": torch.ones(2)}, {**stored, "modality.more": torch.ones(1)}):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match="weights of the modality do not fit: unit is one number") as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_numbers_may_be_stored_in_half_precision(folder: Path) -> None:
    from safetensors.torch import load_file

    pipe = pipeline(network={"name": "test-gaussian", "mean": 1 / 3, "std": 0.5})
    pipe.modality.unit = torch.tensor([0.1])
    pipe.save_pretrained(folder, half=True)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    again = load(folder)
    assert {value.dtype for value in again.denoiser.state_dict().values()} == {torch.float32}
    assert again.denoiser.network.mean.item() == torch.tensor(1 / 3).half().item()
    assert again.modality.unit.item() == torch.tensor(0.1).half().item()
    assert quiet(again, 2)[1] == pytest.approx(quiet(pipe, 2)[1], abs=1e-2)


def test_the_card_says_what_it_is_and_how_to_use_it(tmp_path: Path) -> None:
    facts = {"recipe": "numbers/small", "license": "apache-2.0", "seed": 3, "metrics": {"valid": 98.76543}}
    card = (
        pipeline(**facts).save_pretrained(tmp_path, name="me/numbers", text="Trained on a desk.") / "README.md"
    ).read_text()
    for line in (
        'library_name: "noiseloom"', 'license: "apache-2.0"', "# me/numbers", 'noiseloom.load("me/numbers")',
        "Trained on a desk.", "noiseloom train recipe=numbers/small", "| valid | 98.77 |", "| seed | 3 |",
    ):  # fmt: skip
        assert line in card


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c["network"].update(name="os.system"),
            UnknownName,
            "unknown network 'os.system'.*test-gaussian",
        ),
        (lambda c: c["network"].update(name="../evil.py"), CheckpointError, "refused network.name = '../evil.py'"),
        (lambda c: c["network"].update(name="/tmp/evil"), CheckpointError, "may not name a path"),
        (lambda c: c["modality"].update(cache="https://evil.example/x"), CheckpointError, "may not name a path"),
        (lambda c: c["network"].update(_target_="os.system"), CheckpointError, "refused the key 'network._target_'"),
        (
            lambda c: c["sampling"].update(grid={"_args_": [1]}),
            CheckpointError,
            "refused the key 'sampling.grid._args_'",
        ),
        (lambda c: c["network"].update(width=3), ValueError, "has no option 'width'. Options: mean, std"),
        (lambda c: c.update(schedule="flo"), UnknownName, "Did you mean 'flow'"),
        (lambda c: c.update(network="test-gaussian"), CheckpointError, "network needs a 'name'"),
        (lambda c: c.update(hook="x"), CheckpointError, "unknown key 'hook'"),
        (lambda c: c.pop("sigma_data"), CheckpointError, "no 'sigma_data'"),
        (lambda c: c.update(format=2), CheckpointError, "has format 2; this noiseloom reads format 1"),
    ],
)
def test_a_configuration_that_is_not_names_and_values_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(error, match=message) as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_broken_configurations_are_one_line_errors(folder: Path) -> None:
    path = folder / "config.json"
    for content, message in (
        (b"{", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"[]", "no JSON object"), (b"\xff\xfe", "is not JSON"),
        (b" " * 5_000_000, "5,000,000 bytes"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            load_pretrained(folder)
        assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        load_pretrained(folder)


class Bomb:
    """What a malicious pickle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        torch.save({"weights": Bomb()}, folder / name)
    load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors; model.ckpt, .* could run code") as error:
        load(folder)
    assert "\n" not in str(error.value)
    (folder / "model.pt").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors .* is truncated or no safetensors file"):
        load(folder)
    assert not (folder / "exploded").exists()


def test_damaged_weights_are_one_line_errors_that_name_file_and_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    content, tensors = path.read_bytes(), load_file(path)
    for size in (0, 5, 20, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=rf"model.safetensors \({size} bytes\) is truncated") as error:
            load(folder)
        assert "\n" not in str(error.value)
    for changed, message in (
        ({"network.mean": tensors["network.mean"]}, "missing network.std"),
        ({**tensors, "extra": torch.zeros(1)}, "unexpected extra"),
        ({**tensors, "network.mean": torch.zeros(2)}, r"network.mean is \(2,\), not \(1,\)"),
    ):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_a_name_that_is_nothing_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder nowhere"):
        load(Path("nowhere"))
    import huggingface_hub

    def offline(name: str, **options: Any) -> str:
        assert (name, options["revision"]) == ("me/numbers", "v2")
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no repository of that name could be read from the hub: no network$"):
        Pipeline.from_pretrained("me/numbers", build, revision="v2")


def test_it_goes_to_the_hub_and_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    import huggingface_hub

    class Hub:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> None:
            assert options == {"private": True, "exist_ok": True}

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / name))
    assert pipeline().push_to_hub("me/numbers", private=True) == "https://hub/me/numbers"
    assert quiet(Pipeline.from_pretrained("me/numbers", build, device="cpu"), 2) == quiet(pipeline(), 2)
    assert 'noiseloom.load("me/numbers")' in (tmp_path / "me/numbers" / "README.md").read_text()
