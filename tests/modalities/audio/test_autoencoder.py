"""The autoencoder: lengths, chunks, channels, the divergence, and the statistics that it carries."""

from __future__ import annotations

import pytest
import torch

from noiseloom.core.randomness import StepRandomness
from noiseloom.modalities.audio.autoencoder import Autoencoder, latent_statistics
from noiseloom.modalities.audio.reconstruction import Reconstruction
from noiseloom.modalities.audio.segments import AudioBatch


def tiny(**options: object) -> Autoencoder:
    torch.manual_seed(0)
    small = {"rate": 8000, "width": 4, "n_fft": 64, "widths": (16, 16, 16), "depth": 1}
    return Autoencoder(**{**small, **options}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2])
def test_frames_and_samples_of_every_length(channels: int) -> None:
    autoencoder = tiny(channels=channels)
    assert autoencoder.hop == 64
    for n in (1, 63, 64, 65, 1000):
        latents = autoencoder.encode(torch.randn(2, channels, n))
        assert latents.shape == (2, -(-n // 64), 4)
        assert autoencoder.decode(latents).shape == (2, channels, latents.shape[1] * 64)
        assert autoencoder.reconstruct(torch.randn(2, channels, n))[0].shape == (2, channels, n)


@pytest.mark.parametrize(("strides", "depth"), [((2, 2), 1), ((4,), 2), ((), 1)])
def test_chunks_with_their_context_equal_the_whole(strides: tuple[int, ...], depth: int) -> None:
    autoencoder = tiny(strides=strides, widths=(16,) * (len(strides) + 1), depth=depth)
    frames, hop = 4 * autoencoder.context, autoencoder.hop
    latents = torch.randn(1, frames, 4)
    whole = autoencoder.decode(latents)
    first, last = autoencoder.context + 3, autoencoder.context + 7
    start = first - autoencoder.context
    piece = autoencoder.decode(latents[:, start : last + autoencoder.context])
    own = piece[..., (first - start) * hop : (last - start) * hop]
    torch.testing.assert_close(own, whole[..., first * hop : last * hop], atol=1e-5, rtol=1e-4)


def test_training_samples_and_evaluation_does_not() -> None:
    autoencoder, audio = tiny(), torch.randn(1, 1, 640)
    assert torch.equal(autoencoder.reconstruct(audio)[0], autoencoder.reconstruct(audio)[0])
    assert torch.equal(autoencoder.encode(audio), autoencoder.encode(audio))
    autoencoder.train()
    assert not torch.equal(autoencoder.reconstruct(audio)[0], autoencoder.reconstruct(audio)[0])


def test_the_divergence_in_closed_form() -> None:
    """With a mean of 2 and a variance of e everywhere it is (4 + e - 1 - 1) / 2 per number."""
    autoencoder = tiny()
    with torch.no_grad():
        autoencoder.moments.weight.zero_()
        autoencoder.moments.bias.copy_(torch.tensor([2.0] * 4 + [1.0] * 4))
    kl = autoencoder.reconstruct(torch.randn(3, 1, 640))[1]["kl"]
    torch.testing.assert_close(kl, torch.full((3,), (4 + 2.7182817 - 2) / 2))


def test_statistics_are_those_of_all_frames() -> None:
    autoencoder = tiny()
    clips = [torch.randn(1, n) for n in (64, 640, 1000)]
    mean, std = latent_statistics(autoencoder, clips)
    every = torch.cat([autoencoder.encode(clip[None])[0] for clip in clips]).detach()
    torch.testing.assert_close(mean, every.mean(0))
    torch.testing.assert_close(std, every.std(0, correction=0))


def test_it_learns() -> None:
    torch.manual_seed(0)
    autoencoder = tiny(widths=(32, 32), strides=(2,), width=16).train()
    objective = Reconstruction(autoencoder, adversarial=0, kl=1e-4)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), 3e-3)
    audio, losses = torch.randn(2, 1, 1024) * torch.tensor([0.3, 0.1])[:, None, None], []
    for step in range(40):
        result = objective(autoencoder, AudioBatch(audio), StepRandomness(0, step, range(2), 2))
        losses.append(result.total.mean().item())
        assert set(result.parts) == {"mel", "stft", "kl"}
        optimizer.zero_grad()
        result.total.mean().backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="one width more than strides"):
        tiny(widths=(16,))
    with pytest.raises(ValueError, match="1 or 2 channels"):
        tiny(channels=3)
