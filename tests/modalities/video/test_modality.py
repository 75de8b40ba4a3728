"""Video passes every modality's tests, trains on what it says, and makes what is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("av", reason="needs the extra 'video'")
from noiseloom.core.backbones import NETWORKS
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import Denoising
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.randomness import StepRandomness, sample_generators
from noiseloom.modalities.contract_tests import *  # noqa: F403
from noiseloom.modalities.contract_tests import Case
from noiseloom.modalities.modality import MODALITIES
from noiseloom.modalities.video.clip import Clip, signed, unsigned
from noiseloom.modalities.video.guess import GUESSES
from noiseloom.modalities.video.known import given_cells
from noiseloom.modalities.video.modality import Video
from noiseloom.modalities.video.reading import read
from noiseloom.modalities.video.request import VideoRequest
from noiseloom.modalities.video.tasks import SHARES
from noiseloom.modalities.video.writing import write_mp4

VAE = {"name": "video_autoencoder", "colours": 1, "channels": 4, "factors": [4, 8, 8], "patch": [1, 4, 4]}
SPECS: dict[str, dict[str, Any]] = {
    "pixels": {"name": "pixels", "colours": 1, "factors": [4, 8, 8]},
    "latent": {"name": "latent", "autoencoder": {**VAE, "widths": [8, 8, 8], "depth": 1, "kernel": 3}},
}
EVERY = pytest.mark.parametrize("representation", list(SPECS))
PREPARED = {"sizes": [[16, 16]], "frames": 9}
WINDOW = 9


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16 clips at 8 fps, of classes "1", "2" and both; frames 16 x 16, 9 of them, one clip of 14."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = ["file,split,label,speed"]
    for index in range(16):
        shades = random.integers(0, 256, (14 if index == 3 else 9, 4, 4, 1), np.uint8)
        write_mp4(folder / f"{index}.mp4", Clip(shades.repeat(4, 1).repeat(4, 2), 8.0), quality=10)
        label = ['"1"', '"2"', '"1,2"', '"2,2"'][index % 4]
        rows.append(f"{index}.mp4,{'valid' if index % 4 == 3 else 'train'},{label},{index / 16}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pipeline(modality: Video, **network: Any) -> Pipeline:
    """One of random weights: as it is made it says nothing."""
    torch.manual_seed(0)
    shape = {"patch": [1, 1, 1], "width": 36, "depth": 1, "heads": 2}
    spec = {"name": "dit", **modality.network_options(), **shape, **network}
    config = {"modality": {"name": "video", **modality.config}, "network": spec, "schedule": "flow"}
    denoiser = Denoiser(NETWORKS.build(spec), "flow", **modality.denoiser_options())
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Pipeline(modality, denoiser.eval(), {**config, **modality.denoiser_options(), "sampling": {"steps": 2}})


@pytest.fixture(scope="module")
def model(source: str) -> Callable[..., Any]:
    """A function that makes a pipeline of a representation; the same one for the same options."""
    made: dict[str, Pipeline] = {}

    def make(representation: str = "pixels", **options: Any) -> Pipeline:
        key = f"{representation} {options}"
        if key not in made:
            torch.manual_seed(0)
            told = {"representation": SPECS[representation], "preparation": PREPARED, "prediction": "x0", **options}
            made[key] = pipeline(Video.fitted(source, **told))
        return made[key]

    return make


@pytest.fixture(scope="module", params=list(SPECS))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    modality = Video.fitted(
        "moving-digits-tiny",
        {"columns": {"label": "label"}},
        representation=SPECS[request.param],
        preparation={"sizes": [[32, 32]], "frames": 9, "stride": 20},
        drop={"label": 0.2},
    )
    return Case(modality, "moving-digits-tiny", {"label": "3,8"})


@pytest.fixture
def clip(source: str) -> Clip:
    """A training clip of 9 frames, grey, as it is read."""
    own = read(Path(source) / "1.mp4")
    return Clip(own.frames[..., :1], own.fps, str(Path(source) / "1.mp4"))


def quiet(pipe: Pipeline, count: int = 1, **options: Any) -> list[Clip]:
    return list(pipe.sample(count, progress=False, **options))


def items(modality: Any, source: str, split: str = "train") -> list[Any]:
    """Those of 9 frames."""
    dataset = modality.dataset(source, split)
    return [dataset[i] for i in range(len(dataset))]


# Training


@EVERY
def test_what_is_measured(model: Callable[..., Pipeline], source: str, representation: str) -> None:
    modality: Any = model(representation).modality
    assert (modality.size, modality.fps, modality.window) == ((16, 16), 8.0, WINDOW)
    assert modality.conditions.labels == {"label": ["1", "2"]}
    assert modality.conditions.slots == {"label": 2}
    x0 = modality.encode(items(modality, source)).x0
    deviations = x0.std() if representation == "pixels" else x0.flatten(0, -2).std(0)
    torch.testing.assert_close(deviations, torch.ones_like(deviations), atol=0.02, rtol=0)
    if representation == "pixels":
        assert len(set(modality.config["mean"])) == len(set(modality.config["std"])) == 1
    options = modality.network_options()
    assert options["spacing"] == [4 / 8, 8, 8]
    assert options["concat"] == {"given": 4 * 8 * 8 * 2}
    assert (options["edges"], options["labels"]) == ([0, 1, 2], {"label": 3})


def test_a_batch_holds_what_is_known_of_each_clip(model: Callable[..., Pipeline], source: str) -> None:
    modality: Any = model(known_rate=1.0).modality
    few = items(modality, source)[:8]
    example = modality.encode(few, sample_generators(0, range(8)))
    frames = signed(np.stack([item.clip.frames for item in few]))
    every = given_cells(frames, torch.ones(frames.shape[:-1], dtype=torch.bool), (4, 8, 8))
    pixels, mask = example.cond["given"].chunk(2, dim=-1)
    assert torch.equal(pixels, torch.where(mask.bool(), every[..., : 4 * 8 * 8], 0))
    assert (mask.flatten(1).sum(1) > 0).all()
    assert (mask.flatten(1).sum(1) < 9 * 16 * 16).all()
    assert "given" not in modality.encode(few).cond  # held out, nothing is known
    nothing = model(known_rate=0.0).modality.encode(few, sample_generators(0, range(8)))  # type: ignore[attr-defined]
    assert not nothing.cond["given"].any()


def test_the_rate_is_told_where_it_is_another_and_never_left_out(model: Callable[..., Pipeline], source: str) -> None:
    modality: Any = model(drop={"all": 1.0}).modality
    few = items(modality, source)[:3]
    generators = sample_generators(0, range(3))
    example = modality.encode(few, generators)
    assert "spacing" not in example.cond
    assert (example.cond["label"] == -1).all()
    few[1] = type(few[1])(few[1].latents, Clip(few[1].clip.frames, 4.0, values=few[1].clip.values))
    for example in (modality.encode(few), modality.encode(few, generators)):
        assert example.cond["spacing"].tolist() == [[0.5, 8, 8], [1.0, 8, 8], [0.5, 8, 8]]


@EVERY
def test_a_step_of_training_moves_every_weight(
    model: Callable[..., Pipeline], source: str, representation: str
) -> None:
    pipe = model(representation, known_rate=1.0)
    modality: Any = pipe.modality
    random = StepRandomness(0, 0, range(12), 12)
    losses = Denoising()(pipe.denoiser, modality.encode(items(modality, source)[:12], random.generators), random)
    losses.total.mean().backward()
    still = [name for name, p in pipe.denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    pipe.denoiser.zero_grad()
    assert not still
    assert not any(p.requires_grad for p in modality.representation.parameters())


# Sampling


@EVERY
def test_classes_sizes_and_lengths(model: Callable[..., Pipeline], representation: str) -> None:
    pipe = model(representation)
    clips = quiet(pipe, 4, label=["2,1", "1"])
    assert [one.values["label"] for one in clips] == ["1,2", "1"] * 2
    assert {(one.frames.shape, one.fps) for one in clips} == {((9, 16, 16, 1), 8.0)}
    assert len({one.frames.tobytes() for one in clips}) == 4
    (one,) = quiet(pipe, size=[24, 16], frames=6, fps=4)  # a length that is no 4 k + 1
    assert (one.frames.shape, one.fps) == ((6, 24, 16, 1), 4.0)
    (image,) = quiet(pipe, frames=1)
    assert image.frames.shape == (1, 16, 16, 1)


def test_what_is_told_is_seen(model: Callable[..., Pipeline]) -> None:
    pipe = model()
    told = {"label": "1", "speed": 0.5}
    plain, again = (quiet(pipe, seed=3, **told)[0].frames for _ in range(2))
    assert np.array_equal(plain, again)
    for change in ({"label": "2"}, {"label": "1,1"}, {"speed": 0.9}, {"fps": 4}):
        assert not np.array_equal(quiet(pipe, seed=3, **{**told, **change})[0].frames, plain), change


def test_a_rate_is_seconds_between_frames(model: Callable[..., Pipeline]) -> None:
    modality: Any = model().modality

    def spacing(**options: Any) -> Tensor | None:
        request = VideoRequest(**options)
        return modality.layout(request, modality.plans(request, [0, 1])).cond.get("spacing")

    assert spacing() is None
    assert spacing(fps=8.001) is None  # as good as that of the training data
    assert spacing(fps=16).tolist() == [[0.25, 8, 8]] * 2  # type: ignore[union-attr]


def test_a_sample_does_not_depend_on_its_batch(model: Callable[..., Pipeline]) -> None:
    pipe = model("latent")
    together = pipe.sample(4, seed=4, label="1", frames=20, progress=False)
    for index in (0, 3):
        (alone,) = quiet(pipe, seed=[together.seeds[index]], label="1", frames=20)
        assert alone.values == together[index].values
        assert np.abs(alone.frames.astype(int) - together[index].frames).max() <= 1


@EVERY
@pytest.mark.parametrize(
    "task",
    [
        {"task": "image"},
        {"task": "first_last"},
        {"task": "predict", "known": 4},
        {"task": "predict", "known": 4, "frames": 25},
        {"task": "predict"},
        {"task": "interpolate", "every": 2},
        {"task": "inpaint", "box": [3, 2, 7, 9]},
        {"task": "outpaint", "box": [3, 2, 7, 9]},
        {"task": "vary", "strength": 0.5},
        {"task": "vary", "strength": 0},
    ],
    ids=str,
)
def test_known_pixels_are_those_of_the_input(
    model: Callable[..., Pipeline], clip: Clip, representation: str, task: dict[str, Any]
) -> None:
    modality: Any = model(representation).modality
    request = VideoRequest(input=clip.name, **task)
    layout = modality.layout(request, modality.plans(request, [1, 2]))
    made = quiet(model(representation), 2, input=clip.name, **task)
    seen = layout.seen[0].numpy()
    frames = clip.frames.repeat(2, axis=0)[:17] if task["task"] == "interpolate" else clip.frames
    for one in made:
        assert one.frames.shape == (*seen.shape, 1)
        assert one.fps == (16 if task["task"] == "interpolate" else 8)
        n = min(len(seen), len(frames))
        if task["task"] == "first_last":
            assert np.array_equal(one.frames[[0, -1]], clip.frames[[0, -1]])
        else:
            assert np.array_equal(one.frames[:n][seen[:n]], frames[:n][seen[:n]])
        assert "label" not in one.values  # left open
    free = [one.frames[..., 0][~seen] for one in made]
    assert (task.get("strength") == 0) == (len(free[0]) == 0)
    assert len(free[0]) == 0 or not np.array_equal(*free)


def test_what_is_known_is_told_to_the_network(model: Callable[..., Pipeline], clip: Clip) -> None:
    """The frames to be made depend on those that are known; guidance may leave these out."""
    pipe = model()
    first, other = (quiet(pipe, seed=1, input=clip.name, known=n, label="1")[0].frames for n in (2, 5))
    assert not np.array_equal(first[5:], other[5:])
    free = [
        quiet(pipe, seed=1, input=clip.name, known=2, guidance={"name": "classifier_free", "scale": 3, **keep})[0]
        for keep in ({}, {"keep": ["label", "speed"]}, {"keep": ["given"]})
    ]
    assert all(np.array_equal(one.frames[:2], clip.frames[:2]) for one in free)
    assert len({one.frames.tobytes() for one in free}) >= 2


@EVERY
def test_pieces_of_a_stream_are_the_sample(model: Callable[..., Pipeline], clip: Clip, representation: str) -> None:
    pipe = model(representation)
    for options in ({"frames": 24, "label": "2"}, {"input": clip.name, "known": 4, "frames": 24, "history": 5}):
        (whole,) = quiet(pipe, seed=2, **options)
        pieces = list(pipe.stream(seed=2, **options))
        step = WINDOW - options.get("history", 4)  # type: ignore[operator]
        assert [len(piece) for piece in pieces] == [9, *[step] * ((24 - 9) // step), *[15 % step] * (15 % step > 0)]
        assert np.array_equal(np.concatenate([piece.frames for piece in pieces]), whole.frames)
        assert {piece.fps for piece in pieces} == {whole.fps}
        assert all(piece.values == whole.values for piece in pieces)


@pytest.mark.parametrize("order", ["full_sequence", "autoregressive", {"name": "pyramid", "lag": 1}])
def test_orders_run(model: Callable[..., Pipeline], clip: Clip, order: Any) -> None:
    pipe, calls = model(), []
    hook = pipe.denoiser.network.register_forward_pre_hook(lambda _, given: calls.append(given[1]))
    (made,) = quiet(pipe, input=clip.name, known=5, order=order)
    hook.remove()
    assert np.array_equal(made.frames[:5], clip.frames[:5])
    assert len(calls) == {"full_sequence": 2, "autoregressive": 6}.get(order if isinstance(order, str) else "", 4)
    assert (torch.as_tensor(calls[0]).ndim > 1) == (order != "full_sequence")  # a time for each latent frame


def test_an_image_model_makes_images_and_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"{index}.png")
    spec = {"name": "pixels", "colours": 3, "factors": [1, 8, 8]}
    modality = Video.fitted(str(tmp_path), representation=spec, preparation={**PREPARED, "frames": 1}, prediction="x0")
    pipe: Any = pipeline(modality)
    assert modality.window == 1
    example = modality.encode(items(modality, str(tmp_path)), None)
    assert example.x0.shape[1:] == (1, 2, 2, 192)
    assert [one.frames.shape for one in quiet(pipe, 2)] == [(1, 16, 16, 3)] * 2
    (made,) = quiet(pipe, input=str(tmp_path / "0.png"), task="inpaint", box=[0, 0, 8, 8])
    assert made.frames.shape == (1, 16, 16, 3)


@EVERY
def test_weights_travel_with_the_checkpoint(
    model: Callable[..., Pipeline], tmp_path: Path, representation: str
) -> None:
    pipe = model(representation)
    folder = pipe.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(folder, MODALITIES.build, device="cpu")  # type: ignore[arg-type]
    a, b = (quiet(p, seed=2, label="1,2")[0] for p in (pipe, again))
    assert np.array_equal(a.frames, b.frames)
    assert (representation == "latent") == bool(pipe.modality.tensors())


def test_options_that_do_not_fit_are_one_line(model: Callable[..., Pipeline], clip: Clip, source: str) -> None:
    pipe, other = model(), str(Path(source) / "3.mp4")  # of 14 frames
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": [20, 16]}, "height 20, but 16 or 24"),
        ({"history": 9, "frames": 20}, "history=9: a window has 9 frames, and takes over fewer"),
        ({"label": "3"}, "unknown label '3'.*Choices: 1, 2"),
        ({"label": "1,1,2"}, "label holds at most 2 classes"),
        ({"text": "a ball"}, "unknown condition 'text'"),
        ({"voice": "low"}, "no option 'voice'.*speed"),
        ({"input": [clip.name, other], "known": 2, "count": 2}, "unequal length or rate: give frames=N"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            quiet(pipe, **options)
        assert "\n" not in str(error.value)
    assert len(quiet(pipe, 2, input=[clip.name, other], known=2, frames=9)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preparation": {"channels": 3}}, "unknown option of preparation 'channels'.*Choices: sizes, fps"),
        ({"preparation": {"sizes": [[20, 16]]}}, "height 20, but 16 or 24"),
        ({"drop": {"labl": 0.2}}, "unknown condition to drop 'labl'. Did you mean 'label'"),
        ({"known_rate": 2}, r"known_rate lies in \[0, 1\]"),
        ({"text": "minilm"}, "no column 'text'"),
        ({"data": {"columns": {"given": "label"}}}, "no condition can be called 'given'"),
        ({"representation": "voxels"}, "unknown representation 'voxels'"),
    ],
)
def test_models_that_cannot_be(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Video.fitted(source, **{"representation": SPECS["pixels"], "preparation": PREPARED, **options})
    assert "\n" not in str(error.value)


def test_statistics_of_another_representation_are_refused() -> None:
    conditions: dict[str, Any] = {"labels": {}, "numbers": {}, "rows": {}}
    with pytest.raises(ValueError, match="latents have 256 channels, not 1 means and 1 deviations"):
        Video(SPECS["pixels"], mean=[0.0], std=[1.0], conditions=conditions)
    with pytest.raises(ValueError, match="every std must be positive"):
        Video(SPECS["pixels"], mean=[0.0] * 256, std=[0.0] * 256, conditions=conditions)


def test_every_task_of_training_is_a_task_of_sampling() -> None:
    from noiseloom.modalities.video.request import TASKS

    assert set(SHARES) < set(TASKS)


@EVERY
@pytest.mark.parametrize("frames", [9, 8])
@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("guess", list(GUESSES))
def test_an_untrained_network_says_its_guess(
    model: Callable[..., Pipeline], clip: Clip, representation: str, frames: int, network: str, guess: str
) -> None:
    """Persistence or what moves on; of frames that fill up a group of the representation too, as after 8."""
    modality = model(representation, guess=guess).modality
    shape = {"name": network, "patch": [1, 1, 1], "width": 64, "depth": 2, "heads": 2}
    torch.manual_seed(0)
    net = NETWORKS.build({**shape, **modality.network_options()})
    pipe = Pipeline(modality, Denoiser(net, "flow", **modality.denoiser_options()).eval(), {"sampling": {"steps": 1}})
    (made,) = quiet(pipe, input=clip.name, task="predict", known=5, frames=frames)
    assert np.array_equal(made.frames[:5], clip.frames[:5])
    known = (torch.arange(9) < 5).view(1, -1, 1, 1).expand(1, 9, *clip.frames.shape[1:3])
    coded = modality.representation.encode(GUESSES[guess](signed(clip.frames[None]), known))
    expected = unsigned(modality.representation.decode(coded))[0]
    assert np.abs(made.frames[5:].astype(int) - expected[5:frames]).max() <= 1


def test_a_guess_needs_x0_and_tasks_have_names(source: str) -> None:
    told = {"representation": SPECS["pixels"], "preparation": PREPARED}
    with pytest.raises(ValueError, match="guess=held needs prediction=x0"):
        Video.fitted(source, guess="held", **told)
    with pytest.raises(ValueError, match="Choices: held, moved"):
        Video.fitted(source, guess="advected", prediction="x0", **told)
    with pytest.raises(ValueError, match="predict"):
        Video.fitted(source, tasks={"forecast": 1.0}, **told)
    with pytest.raises(ValueError, match="not all 0"):
        Video.fitted(source, tasks={"predict": 0.0}, **told)
