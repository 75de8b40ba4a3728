"""Changing a given sound: what of it is kept, and how what is made is joined to it.

Samples that are kept come back bit by bit. What is made is joined without a click: at each border its offset from how
the kept sound goes on is faded out over a few milliseconds, within the made part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .representation import Mel, Representation, Wave
from .request import DURATION, AudioRequest, spans

FADE = 0.008  # seconds over which a join's offset is faded out
SEAM = 0.02  # seconds over which the beginning of a loop is faded over from what goes on after its end
_ALIGN = 0.012  # seconds by which what is made may be moved to meet the kept sound in phase
_MARGIN = 32  # frames that a loop is decoded with on either side, where the decoder does not say what it needs


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one sound.

    Attributes:
        audio: the sound to start from, (channels, n), with silence where it is to grow.
        kept: which samples come back as they are, boolean, (n,).
        known: which numbers of its frames are given, boolean, (1, frames, width).
        rate: samples a second.
        gain: a factor that brings the sound to the level the model has learned.
        strength: where in time to start.
        cutoff: in Hz: below it the sound is kept, above it the made one is heard; None: by ``kept``.
    """

    audio: np.ndarray
    kept: np.ndarray
    known: Tensor
    rate: int
    gain: float = 1.0
    strength: float = 1.0
    cutoff: float | None = None

    @property
    def length(self) -> int:
        return self.audio.shape[1]

    def splice(self, made: np.ndarray) -> np.ndarray:
        """The edited sound, (channels, n), from the one that was made."""
        if self.cutoff is not None:
            return self.audio + _highpass(made / self.gain - self.audio, self.cutoff, self.rate)
        if not self.kept.any():  # a variation: from the level of the sound to that of the model
            return made / self.gain ** (1 - self.strength)
        out, made = np.where(self.kept, self.audio, np.float32(0)), made / self.gain
        for start, stop in gaps(self.kept):
            out[:, start:stop] = self._joined(made, out, start, stop)
        return out

    def _joined(self, made: np.ndarray, out: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The made samples of a span, in phase with the kept sound at its first border and meeting it at both."""
        shift, reach = self._shift(made, out, start, stop), round(_ALIGN * self.rate)
        part = made[:, np.clip(np.arange(start, stop) + shift, 0, self.length - 1)]
        ramp = _ramp(min(round(FADE * self.rate), max((stop - start) // 2, 1)))
        if start:
            before = out[:, max(start - reach, 0) : start]
            part[:, : len(ramp)] += (_next(before) - part[:, 0])[:, None] * ramp
        if stop < self.length:
            after = out[:, stop : stop + reach]
            part[:, -len(ramp) :] += (_next(after[:, ::-1]) - part[:, -1])[:, None] * ramp[::-1]
        return part

    def _shift(self, made: np.ndarray, out: np.ndarray, start: int, stop: int) -> int:
        """By how many samples the made sound, read later, best agrees with the kept one beside its first border."""
        reach = round(_ALIGN * self.rate)
        first = max(start - reach, 0) if start else stop
        last = start if start else min(stop + reach, self.length)
        if last - first < 2:
            return 0
        own = out[:, first:last].sum(0).astype(np.float64)
        moved = sorted(range(-(reach // 2), reach // 2 + 1), key=abs)
        shifts = [s for s in moved if first + s >= 0 and max(last, stop) + s <= self.length]
        others = np.stack([made[:, first + s : last + s].sum(0) for s in shifts]).astype(np.float64)
        scores = others @ own / (np.linalg.norm(others, axis=1) + 1e-6)
        best = int(np.argmax(scores))
        return shifts[best] if scores[best] > 0 else 0


def edit_of(
    request: AudioRequest,
    representation: Representation,
    opened: Callable[[str], np.ndarray],
    gain: Callable[[np.ndarray], float],
) -> Edit | None:
    """The edit that a request asks for; None: a sound from nothing.

    Args:
        representation: of the model.
        opened: reads a file as (channels, n).
        gain: a factor that brings a sound to the level that the model has learned.

    Raises:
        ValueError: no input, two edits at once, or one that does not fit it.
    """
    kinds = {
        "strength": request.strength is not None,
        "inpaint": request.inpaint is not None,
        "extend or prepend": request.extend is not None or request.prepend is not None,
        "bandwidth": request.bandwidth is not None,
    }
    chosen = [kind for kind, given in kinds.items() if given]
    if request.input is None:
        if chosen:
            raise ValueError(f"{chosen[0]} changes a sound: give it as input=FILE")
        return None
    if request.loop:
        raise ValueError("a loop is made from nothing: leave out input")
    if DURATION in request.asked():
        raise ValueError("an input says how long its edit is: leave out duration")
    if len(chosen) != 1:
        choices = "strength, inpaint, extend, prepend, bandwidth"
        raise ValueError(f"say one thing to do with the input, not {len(chosen)}: one of {choices}")
    audio = opened(request.input)
    if request.strength is not None:
        return _variation(audio, gain(audio), request.strength, representation)
    if request.bandwidth is not None:
        return _bandwidth(audio, gain(audio), request.bandwidth, representation)
    return _partly(audio, gain, request, representation)


def closed(representation: Representation, frames: Tensor, length: int) -> np.ndarray:
    """The sound of a loop, (channels, length), from its frames (T, width): its end leads into its beginning.

    It is decoded with its beginning after its end and the other way round. A decoder that finds its phases anew need
    not go on as it began, so the beginning is faded over from what goes on after the end.
    """
    hop = representation.hop
    ramp = _ramp(min(round(SEAM * representation.rate), length // 2))
    margin = max(_MARGIN if representation.context is None else representation.context, -(-len(ramp) // hop))
    places = torch.arange(-margin, representation.frames(length) + margin) % (length // hop)
    sound = representation.decode(frames[places][None], [length + 2 * margin * hop])[0].numpy()
    start, stop = margin * hop, margin * hop + length
    out = sound[:, start:stop].copy()
    out[:, : len(ramp)] += (sound[:, stop : stop + len(ramp)] - out[:, : len(ramp)]) * ramp
    return out


def gaps(kept: np.ndarray) -> list[tuple[int, int]]:
    """Where samples are not kept, as (start, stop), in order."""
    edges = np.flatnonzero(np.diff(np.pad(~kept, 1).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _variation(audio: np.ndarray, gain: float, strength: float, representation: Representation) -> Edit:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength lies in [0, 1], got {strength:g}")
    frames = representation.frames(audio.shape[1])
    kept = np.full(audio.shape[1], strength == 0)
    known = torch.zeros(1, frames, representation.width, dtype=torch.bool)
    return Edit(audio, kept, known, representation.rate, gain, strength)


def _bandwidth(audio: np.ndarray, gain: float, cutoff: float, representation: Representation) -> Edit:
    if not isinstance(representation, Mel):
        raise ValueError("bandwidth needs frames of frequencies: a checkpoint whose representation is mel")
    mel = representation.preset
    if not 0 < cutoff < mel.rate / 2:
        raise ValueError(
            f"bandwidth lies between 0 and {mel.rate / 2:g} Hz, half the checkpoint's rate; got {cutoff:g}"
        )
    frequencies = torch.linspace(0, mel.rate / 2, mel.n_fft // 2 + 1)
    reach = (mel.filters() > 0) & (frequencies > cutoff)  # a band that reaches above the cutoff is not known
    band = (~reach.any(1)).repeat(representation.channels)
    known = band.expand(1, representation.frames(audio.shape[1]), -1)
    return Edit(audio, np.zeros(audio.shape[1], bool), known, mel.rate, gain, cutoff=cutoff)


def _partly(
    audio: np.ndarray, gain: Callable[[np.ndarray], float], request: AudioRequest, representation: Representation
) -> Edit:
    rate, length = representation.rate, audio.shape[1]
    added = {"prepend": request.prepend or 0.0, "extend": request.extend or 0.0}
    for name, seconds in added.items():
        if seconds < 0:
            raise ValueError(f"{name} must be positive, got {seconds:g}")
    before, after = (round(seconds * rate) for seconds in added.values())
    audio = np.pad(audio, ((0, 0), (before, after)))
    kept = np.zeros(audio.shape[1], bool)
    kept[before : before + length] = True
    for start, stop in spans([] if request.inpaint is None else request.inpaint):
        if start * rate >= length:
            raise ValueError(f"the span {start:g}-{stop:g} s lies behind the end of the input, {length / rate:g} s")
        kept[round(start * rate) : round(min(stop * rate, length))] = False
    if kept.all():
        raise ValueError("nothing to make: give extend or prepend a length, or inpaint a span")
    frames = representation.frames(audio.shape[1])
    known = torch.from_numpy(_heard_whole(kept, frames, representation))[None, :, None]
    return Edit(audio, kept, known.expand(-1, -1, representation.width), rate, gain(audio[:, kept]))


def _heard_whole(kept: np.ndarray, frames: int, representation: Representation) -> np.ndarray:
    """The frames that hear nothing but samples that are kept; a frame beyond the last hop goes with it."""
    hop, heard = representation.hop, kept.copy()
    reach = 0 if isinstance(representation, Wave) else hop  # samples that a frame hears on either side of its own
    if isinstance(representation, Mel):
        reach = (representation.preset.n_fft - (0 if representation.preset.centred else hop)) // 2
    for start, stop in gaps(kept):
        heard[max(start - reach, 0) : stop + reach] = False
    whole: np.ndarray = np.all(np.pad(heard, (0, -len(heard) % hop), mode="edge").reshape(-1, hop), axis=1)
    return np.pad(whole, (0, frames - len(whole)), mode="edge")


def _ramp(length: int) -> np.ndarray:
    """From 1 towards 0, smoothly."""
    return (np.cos(np.linspace(0, np.pi / 2, length, endpoint=False)) ** 2).astype(np.float32)


def _next(sound: np.ndarray) -> np.ndarray:
    """The sample of each channel that goes on after (channels, n): linear in the last two, fitted by least squares. A
    tone goes on as it is, noise by about nothing."""
    if sound.shape[1] < 4:
        return sound[:, -1]
    past = np.stack([sound[:, 1:-1].ravel(), sound[:, :-2].ravel()], 1).astype(np.float64)
    weights = np.linalg.lstsq(past, sound[:, 2:].ravel(), rcond=None)[0]
    following: np.ndarray = sound[:, -1:-3:-1] @ weights
    return np.clip(following, -np.abs(sound).max(), np.abs(sound).max()).astype(np.float32)


def _highpass(samples: np.ndarray, cutoff: float, rate: int) -> np.ndarray:
    """What lies above the cutoff, with a transition of a tenth of it below; linear phase, by the whole spectrum."""
    spectrum = np.fft.rfft(samples, axis=-1)
    frequencies = np.fft.rfftfreq(samples.shape[-1], 1 / rate)
    rise = np.clip((frequencies - 0.9 * cutoff) / (0.1 * cutoff), 0, 1)
    return np.fft.irfft(spectrum * np.sin(rise * np.pi / 2) ** 2, samples.shape[-1], axis=-1).astype(np.float32)
