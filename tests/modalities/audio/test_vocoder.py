"""The vocoder: its exact inverse transform, its reach, and where the gradients of its objective go."""

from __future__ import annotations

import pytest
import torch

from noiseloom.core.randomness import StepRandomness
from noiseloom.modalities.audio.adversarial import Discriminators
from noiseloom.modalities.audio.convnext import InverseSTFT
from noiseloom.modalities.audio.mel import PRESETS
from noiseloom.modalities.audio.reconstruction import Reconstruction, stft_distance, window_sizes
from noiseloom.modalities.audio.segments import AudioBatch
from noiseloom.modalities.audio.vocoder import Vocoder


def tiny(**options: object) -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(**{"width": 16, "depth": 2, **options}).eval()  # type: ignore[arg-type]


def sines(batch: int = 2, n: int = 2048) -> torch.Tensor:
    time = torch.arange(n) / 8000
    return torch.stack([0.3 * torch.sin(6.2832 * (220 * (k + 1)) * time) for k in range(batch)])[:, None]


@pytest.mark.parametrize("name", ["speech-8k", "audioldm-16k", "vocos-24k"])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_the_inverse_of_a_true_spectrum_is_the_sound(name: str, frames: int) -> None:
    mel = PRESETS[name]
    before = mel.n_fft // 2 if mel.centred else (mel.n_fft - mel.hop) // 2
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(2, (frames - 1) * mel.hop + mel.n_fft, generator=generator)
    spectrum = torch.stft(
        sound, mel.n_fft, mel.hop, window=torch.hann_window(mel.n_fft), center=False, return_complex=True
    )
    made = InverseSTFT(mel.n_fft, mel.hop, before)(spectrum.mT)
    torch.testing.assert_close(made, sound[:, before : before + frames * mel.hop], atol=1e-4, rtol=0)


def test_every_number_of_frames_gives_that_many_hops() -> None:
    vocoder = tiny()
    for frames in (1, 2, 3, 17):
        audio = vocoder(torch.randn(2, frames, 64))
        assert audio.shape == (2, frames * 64)
        assert audio.isfinite().all()


def test_chunks_with_their_context_equal_the_whole() -> None:
    vocoder, frames, chunk = tiny(), 60, 10
    mel = torch.randn(1, frames, 64)
    whole = vocoder(mel)
    for first in range(0, frames, chunk):
        start, stop = max(first - vocoder.context, 0), min(first + chunk + vocoder.context, frames)
        piece = vocoder(mel[:, start:stop])[:, (first - start) * 64 : (first - start + chunk) * 64]
        torch.testing.assert_close(piece, whole[:, first * 64 : (first + chunk) * 64], atol=1e-5, rtol=1e-4)


def test_the_context_is_not_larger_than_it_need_be() -> None:
    vocoder = tiny()
    mel = torch.randn(1, 60, 64, requires_grad=True)
    vocoder(mel)[:, 30 * 64 : 31 * 64].sum().backward()
    assert mel.grad is not None
    reached = mel.grad[0].abs().sum(1).nonzero()[:, 0]
    reach = max(30 - int(reached.min()), int(reached.max()) - 30)
    assert vocoder.context - 2 <= reach <= vocoder.context


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown mel preset 'speech-9k'\. Did you mean 'speech-8k'"):
        Vocoder("speech-9k")
    with pytest.raises(ValueError, match="kernel is odd"):
        Vocoder(kernel=4)


def test_each_side_of_the_adversarial_losses_gets_its_own_gradient() -> None:
    torch.manual_seed(0)
    judges = Discriminators(1, (2, 3), (64,), 4)
    real, made = sines(), (sines() + 0.1 * torch.randn(2, 1, 2048)).requires_grad_()
    for name in ("discriminator", "generator", "features"):
        losses = judges.losses(real, made)
        judges.zero_grad()
        made.grad = None
        losses[name].sum().backward()
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in judges.parameters()]
        if name == "discriminator":
            assert all(reached)
            assert made.grad is None
        else:
            assert not any(reached)
            assert made.grad is not None
            assert made.grad.abs().sum() > 0


def test_one_backward_pass_gives_what_two_would() -> None:
    """The discriminators' gradient of the whole objective is that of their own loss, the vocoder's that of the rest."""
    vocoder = tiny().train()
    objective = Reconstruction(vocoder, adversarial_start=0, adversarial_ramp=0, width=4)
    assert objective.discriminators is not None
    random, example = StepRandomness(0, 0, range(2), 2), AudioBatch(sines())
    total = objective(vocoder, example, random).total
    assert total.shape == (2,)
    total.mean().backward()
    ours = [p.grad.clone() for p in objective.discriminators.parameters()]
    objective.zero_grad()
    made = vocoder.reconstruct(example.audio)[0].detach()
    objective.discriminators.losses(example.audio, made)["discriminator"].mean().backward()
    for p, gradient in zip(objective.discriminators.parameters(), ours, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is not None for p in vocoder.parameters())


def test_discriminators_take_part_from_their_step_on_and_never_held_out() -> None:
    vocoder = tiny().train()
    objective = Reconstruction(vocoder, adversarial_start=5, adversarial_ramp=10, width=4)
    example = AudioBatch(sines())
    early, late = (objective(vocoder, example, StepRandomness(0, step, range(2), 2)) for step in (4, 5))
    assert set(early.parts) == {"mel", "stft"}
    assert set(late.parts) == {"mel", "stft", "discriminator", "generator", "features"}
    expected = early.total + late.parts["discriminator"]
    expected = expected + 0.1 * (late.parts["generator"] + 2 * late.parts["features"])
    torch.testing.assert_close(late.total, expected)
    ((view, held_out),) = objective.held_out(vocoder, example, [0, 1], 0)
    assert view == ""
    torch.testing.assert_close(held_out.total, early.total)


def test_the_spectral_distance_in_closed_form() -> None:
    """Of a sound and itself 0; a gain g gives a convergence of |1 - g| and a mean logarithm of ln g."""
    noise = 0.3 * torch.randn(3, 1, 4096, generator=torch.Generator().manual_seed(0))
    sizes = window_sizes(8000, (0.064, 0.008))
    assert sizes == [512, 64]
    assert stft_distance(noise, noise, sizes).abs().max() == 0
    torch.testing.assert_close(
        stft_distance(noise, noise / 2, sizes), torch.full((3,), 0.5 + 0.6931), atol=1e-3, rtol=0
    )
    assert stft_distance(torch.zeros(1, 1, 4096), 1e-6 * noise[:1], sizes) < 0.01


def test_it_learns() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(width=32, depth=1).train()
    objective = Reconstruction(vocoder, adversarial=0)
    assert objective.discriminators is None
    optimizer = torch.optim.AdamW(vocoder.parameters(), 5e-3)
    audio, losses = torch.randn(2, 1, 1024) * torch.tensor([0.3, 0.1])[:, None, None], []
    for step in range(40):
        result = objective(vocoder, AudioBatch(audio), StepRandomness(0, step, range(2), 2))
        losses.append(result.parts["mel"].mean().item())
        optimizer.zero_grad()
        result.total.mean().backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
