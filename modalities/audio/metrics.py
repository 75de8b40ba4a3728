"""Metrics of a set of clips, each with its protocol, its n and the figure of real data beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from noiseloom.core.registry import unknown

from ..component import Component
from ..distances import Array, entropy, inception_score
from ..report import Z95, Report, Row, mean_row, share
from ..set_rows import real_sets, set_rows
from .clips import BLOCK, Scores, failure, load, score
from .embedders import Embedder, build_embedder, preset_for
from .pitch import TRACKERS, cents
from .spectral import SILENT, log_spectral_distance, mel_distance, multi_resolution_stft
from .waveform import Waveform

__all__ = ["evaluate", "load"]


def evaluate(
    artifacts: Sequence[Waveform | None],
    reference: Sequence[Waveform | None] | None = None,
    *,
    embedder: str | Path | Mapping[str, Any] | Component | Embedder = "statistics",
    training: Sequence[Waveform | None] | str | Path | None = None,
    tracker: str = "yin",
    title: str = "audio",
) -> Report:
    """Score clips; every one of them counts, failed ones too.

    Args:
        artifacts: with what was asked of each in its ``values``: labels, "pitch" (a MIDI key) or "pitch_hz",
            "duration" in seconds. None for a sample that failed.
        reference: real clips that were not trained on; of the same names and lengths (round trips), they are also
            compared one by one.
        embedder: see :func:`.embedders.build_embedder`.
        training: real clips that were trained on, or a source whose training split they are; by default the
            embedder's gallery, where it carries one.
        tracker: of pitch, "yin" or "crepe".
        title: what is scored, for the report's first line.

    Returns:
        The report; its ``items`` are the :class:`.clips.Scores`, one for each clip.

    Raises:
        UnknownName, MissingExtra, ValueError: see :func:`.embedders.build_embedder`; an unknown tracker.
    """
    if tracker not in TRACKERS:
        raise ValueError(unknown("tracker", tracker, TRACKERS))
    if isinstance(training, str | Path):
        training = load(training, "train")
    scores, others = score(artifacts, tracker), score(reference or (), tracker)
    clips, held_out, trained = (_usable(waves) for waves in (artifacts, reference or (), training or ()))
    rates = Counter(wave.rate for wave in held_out or trained or clips)
    embed = build_embedder(embedder, max(rates, key=rates.__getitem__, default=16000))
    classes = [_heard(embed, clips, scores), _heard(embed, held_out, others)]
    labels = sorted({name for s in scores for name in s.asked} & set(embed.labels))
    with_lufs = all(s.lufs is not None for s in [*scores, *others] if not s.failure)

    def asked(scores: Sequence[Scores], probabilities: Mapping[str, Array]) -> list[Row]:
        return _class_rows(embed, scores, probabilities, labels) + _pitch_rows(scores, tracker)

    alone = [*asked(others, classes[1]), *_clip_rows(others, with_lufs)] if held_out else []
    figures = {row.name: row.value for row in alone} or dict(embed.figures)
    rows = [replace(row, real=figures.get(row.name)) for row in asked(scores, classes[0])]
    notes = [] if artifacts else ["there are no clips: nothing was measured"]
    known = embed(trained) if trained else embed.gallery
    real = real_sets(embed(held_out), known, "training clips" if trained else "gallery clips")
    ours = embed(clips) if real else np.zeros((0, 0))
    compared, missing, distances = set_rows(ours, real, embed.name)
    rows, notes = rows + compared, notes + missing
    if distances is not None:
        for one, distance in zip((s for s in scores if not s.failure), distances, strict=True):
            one.nearest = float(distance)
    rows += [replace(row, real=figures.get(row.name)) for row in _clip_rows(scores, with_lufs)]
    rows += _pair_rows(clips, held_out)
    told = f"{len(held_out):,} clips of the reference" if held_out else ""
    told = told or ("published with the embedder" if embed.figures else "")
    failed = dict(Counter(s.failure for s in scores if s.failure).most_common())
    return Report(f"{title}: {len(artifacts):,} clips", rows, failed, notes, told, scores)


def _usable(waves: Sequence[Waveform | None]) -> list[Waveform]:
    return [wave for wave in waves if wave is not None and not failure(wave)]


def _heard(embed: Embedder, clips: Sequence[Waveform], scores: Sequence[Scores]) -> dict[str, Array]:
    """Class probabilities of the usable clips; what is heard goes into their scores."""
    if not embed.labels or not clips:
        return {}
    probabilities = embed.probabilities(clips)
    for name, values in probabilities.items():
        for one, index in zip((s for s in scores if not s.failure), values.argmax(1), strict=True):
            one.heard[name] = embed.labels[name][index]
    return probabilities


def _clip_rows(scores: Sequence[Scores], with_lufs: bool) -> list[Row]:
    """What clips measure by themselves."""
    kept = [s for s in scores if not s.failure]
    n, m = len(scores), len(kept)
    decoded = sum(s.failure in ("", "not finite") for s in scores)
    rows = [
        share("readable", decoded, n, "decoded, with at least one sample"),
        share("finite", m, n, "readable, and every sample is finite; what follows is of these"),
        share("clipped", sum(s.clipped for s in kept), m, "3 samples in a row at full scale", better="lower"),
        share("silent", sum(s.silent for s in kept), m, f"no 50 ms above {SILENT:.0f} dBFS", better="lower"),
    ]
    if not kept:
        return rows
    seconds = [s.seconds for s in kept]
    rows += [mean_row("duration", seconds, "mean length", "s"), _spread("duration_spread", seconds, "of lengths", "s")]
    if off := [abs(s.seconds - s.asked_seconds) for s in kept if s.asked_seconds is not None]:
        rows.append(mean_row("duration_error", off, "mean |length - length asked|", "s", better="lower"))
    if with_lufs:
        name, unit, levels = "loudness", "LUFS", [s.lufs for s in kept if s.lufs is not None and not s.silent]
        protocol = "ITU-R BS.1770; not silent"
    else:
        name, unit, levels = "level", "dBFS", [s.level for s in kept if not s.silent]
        protocol = f"root mean square (a clip is under {BLOCK} s: no loudness); not silent"
    if levels:
        rows.append(mean_row(name, levels, f"mean, {protocol}", unit))
        rows.append(_spread(f"{name}_spread", levels, f"of {name}", "dB"))
    timbres = [s.timbre for s in kept if s.timbre is not None]
    if timbres:
        rows.append(mean_row("spectral_centroid", [t.centroid for t in timbres], "mean over audible frames", "Hz"))
        rows.append(mean_row("spectral_flatness", [t.flatness for t in timbres], "0 a tone, 0.56 white noise"))
    return rows


def _pitch_rows(scores: Sequence[Scores], tracker: str) -> list[Row]:
    """Asked pitches; a clip in which none is found is wrong, and so is one that failed."""
    asked = [s for s in scores if s.asked_pitch is not None]
    if not asked:
        return []
    n = len(asked) + sum(s.failure == "unreadable" for s in scores)
    found = [cents(s.pitch, s.asked_pitch) for s in asked if s.pitch is not None and s.asked_pitch is not None]
    off = np.abs(np.array(found))
    octave = sum(abs(c) > 600 and abs(c - 1200 * round(c / 1200)) <= 50 for c in found)
    rows = [
        share("pitch_accuracy", float((off <= 50).sum()), n, f"{tracker}: within 50 cents of the pitch asked"),
        share("pitch_octave_errors", octave, n, f"{tracker}: within 50 cents of an octave of it", better="lower"),
        share("pitch_found", len(found), n, f"{tracker}: a pitch in 30 % of the part within 20 dB of the loudest"),
    ]
    middle = float(np.median(off)) if len(off) else None
    return [*rows, Row("pitch_error", middle, len(off), f"{tracker}: median, where found", "cents", better="lower")]


def _class_rows(
    embed: Embedder, scores: Sequence[Scores], probabilities: Mapping[str, Array], asked: Sequence[str]
) -> list[Row]:
    """What a classifier hears: the class asked for, else how many there are, and how clear and even they are."""
    rows = []
    for name, values in probabilities.items():
        classes, by = embed.labels[name], f"heard by {embed.name}"
        heard = [s.heard[name] for s in scores if name in s.heard]
        if name in asked:
            told = [s for s in scores if name in s.asked]
            n = len(told) + sum(s.failure == "unreadable" for s in scores)
            right = sum(s.heard.get(name) == s.asked[name] for s in told)
            rows.append(share(f"{name}_accuracy", right, n, f"the {name} asked is {by}; failed clips are wrong"))
        else:
            protocol = f"how many of {len(classes)} occur, {by}"
            rows.append(Row(f"{name}_variety", float(len(set(heard))), len(heard), protocol, better="real"))
        counts = np.array([heard.count(one) for one in classes])
        value, error = inception_score(values)
        at_most = f"at most {np.log(len(classes)):.2f}"
        rows += [
            Row(f"{name}_entropy", entropy(counts), len(heard), f"nats, {at_most}, of classes {by}", better="real"),
            Row(
                f"{name}_inception_score",
                value,
                len(heard),
                f"exp mean KL of classes to their mean, 1 to {len(classes)}, {by}",
                error=Z95 * error,
            ),
        ]
    return rows


def _pair_rows(clips: Sequence[Waveform], held_out: Sequence[Waveform]) -> list[Row]:
    """Clips against the reference's of the same name, rate and length; none unless half of them have one."""
    named = {Path(wave.name).with_suffix("").as_posix(): wave for wave in held_out if wave.name}
    pairs = []
    for wave in clips:
        other = named.get(Path(wave.name).with_suffix("").as_posix()) if wave.name else None
        if other is not None and (other.rate, other.samples.shape) == (wave.rate, wave.samples.shape):
            pairs.append((wave.samples, other.samples, preset_for(wave.rate)))
    if not pairs or len(pairs) < len(clips) / 2:
        return []
    with_name, presets = "of clips and the reference's of the same name", sorted({preset for *_, preset in pairs})
    stft = [multi_resolution_stft(a, b) for a, b, _ in pairs]
    log = [log_spectral_distance(a, b) for a, b, _ in pairs]
    mel = [mel_distance(a, b, preset) for a, b, preset in pairs]
    return [
        mean_row("stft_distance", stft, f"multi-resolution STFT (512, 1024, 2048) {with_name}", better="lower"),
        mean_row("log_spectral_distance", log, f"windows of 1024, {with_name}", "dB", better="lower"),
        mean_row(
            "mel_distance", mel, f"{', '.join(presets)}: mean |log-mel difference| {with_name}", "nats", better="lower"
        ),
    ]


def _spread(name: str, values: Sequence[float], protocol: str, unit: str) -> Row:
    return Row(name, float(np.std(values)), len(values), f"standard deviation {protocol}", unit, better="real")
