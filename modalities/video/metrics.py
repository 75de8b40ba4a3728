"""Metrics of a set of clips, each with its protocol, its n and the figure of real data beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..component import Component
from ..distances import Array
from ..report import Report, Row, mean_row, share
from ..set_rows import real_sets, set_rows
from .changes import CHANGES, CONTROLS, SHORTEST, control
from .clip import Clip
from .extractors import Extractor, Judge, build_extractor, find_judge
from .files import load
from .frame_metrics import WINDOWS, mse, psnr, ssim, temporal_error
from .labelled import split_label
from .motion import Motion, motion
from .prediction import prediction_rows

__all__ = ["Scores", "evaluate", "load"]

_BROKEN = {
    "static": "one frame of each clip, repeated",
    "shuffled": "the frames of each clip in random order",
    "swapped": "the second half of each clip from another",
}


@dataclass
class Scores:
    """What one clip measures.

    Attributes:
        failure: why there is nothing to measure, or "".
        frames, seconds: its length.
        motion: how it moves.
        asked: the classes that were asked, sorted; None where no label was.
        seen: those that a judge sees; None without one.
        halves: those that it sees in the first half and in the second, where there are enough frames.
        change: what a judge thinks was done to its time.
        nearest: its distance to the nearest training clip.
    """

    failure: str = ""
    frames: int = 0
    seconds: float = 0.0
    motion: Motion = field(default_factory=Motion)
    asked: list[str] | None = None
    seen: list[str] | None = None
    halves: tuple[list[str], list[str]] | None = None
    change: str | None = None
    nearest: float | None = None


def evaluate(
    artifacts: Sequence[Clip | None],
    reference: Sequence[Clip | None] | None = None,
    *,
    judge: str | Path | Component | None = None,
    extractor: str | Path | Mapping[str, Any] | Component | Extractor | None = None,
    training: Sequence[Clip | None] | str | Path | None = None,
    given: int | None = None,
    thresholds: Sequence[float] = (),
    controls: bool = False,
    title: str = "video",
) -> Report:
    """Score clips; every one of them counts, failed ones too.

    Args:
        artifacts: with what was asked of each in its ``values``. None for a sample that failed.
        reference: real clips that were not trained on; those of the same names and shapes are also compared frame by
            frame.
        judge: that looks at the clips, see :func:`.extractors.find_judge`.
        extractor: see :func:`.extractors.build_extractor`; by default the judge, without one "statistics".
        training: real clips that were trained on, or a source whose training split they are; by default the
            extractor's gallery, where it carries one.
        given: clips are predictions from so many first frames of the reference's clips of the same names; several may
            be of one.
        thresholds: see :func:`.prediction.prediction_rows`.
        controls: measure the distances of broken clips as well: static, shuffled and swapped ones, made of the
            reference's, without one of these clips.
        title: what is scored, for the report's first line.

    Returns:
        The report; its ``items`` are the :class:`Scores`, one for each clip.

    Raises:
        UnknownName, MissingExtra, ValueError: see :mod:`.extractors`.
    """
    if isinstance(training, str | Path):
        training = load(training, "train")
    seer = None if judge is None else find_judge(judge)
    embed = build_extractor(extractor if extractor is not None else judge if judge is not None else "statistics")
    scores, others = _score(artifacts, seer), _score(reference or (), seer)
    clips, held_out, trained = (_usable(some) for some in (artifacts, reference or (), training or ()))
    figures = {row.name: row.value for row in _clip_rows(others, seer)} if held_out else {}
    figures = figures or dict(seer.figures if seer else {})
    rows = [replace(row, real=figures.get(row.name)) for row in _clip_rows(scores, seer)]
    notes = [] if artifacts else ["there are no clips: nothing was measured"]
    known = embed(trained) if trained else embed.gallery
    real = real_sets(embed(held_out), known, "training clips" if trained else "gallery clips")
    name = f"{embed.name}: {embed.sees}, of {_lengths(clips)}"
    broken: list[tuple[str, str, Array]] = []
    if controls and real:
        whose = "of the reference" if held_out else "of these"
        made = [(change, control(held_out or clips, change)) for change in CONTROLS]
        broken = [(change, f"{_BROKEN[change]}, {whose}", embed(some)) for change, some in made]
    compared, missing, distances = set_rows(embed(clips) if real else np.zeros((0, 0)), real, name, broken)
    if distances is not None:
        for one, distance in zip((s for s in scores if not s.failure), distances, strict=True):
            one.nearest = float(distance)
    rows += compared
    rows += _pair_rows(clips, held_out) if given is None else _predictions(clips, held_out, given, thresholds)
    told = f"{len(held_out):,} clips of the reference" if held_out else ""
    told = told or ("published with the judge" if figures else "")
    failed = dict(Counter(s.failure for s in scores if s.failure).most_common())
    return Report(f"{title}: {len(artifacts):,} clips", rows, failed, [*notes, *missing], told, scores)


def _usable(clips: Sequence[Clip | None]) -> list[Clip]:
    return [clip for clip in clips if clip is not None and len(clip)]


def _score(clips: Sequence[Clip | None], judge: Judge | None) -> list[Scores]:
    scores = []
    for clip in clips:
        if clip is None or not len(clip):
            scores.append(Scores("unreadable" if clip is None else "no frames"))
            continue
        label = clip.values.get(judge.label if judge else "label")
        asked = split_label(label) or None
        scores.append(Scores("", len(clip), clip.seconds, motion(clip.frames), asked))
    if judge is None or not any(not s.failure for s in scores):
        return scores
    usable, kept = _usable(clips), [s for s in scores if not s.failure]
    embeddings = judge.embed(usable)
    changes = judge.changes_seen(embeddings).argmax(1).tolist()
    for one, seen, change in zip(kept, judge.labels_seen(embeddings), changes, strict=True):
        one.seen = split_label(seen)
        one.change = CHANGES[change] if one.frames >= SHORTEST else None
    long = [(one, clip) for one, clip in zip(kept, usable, strict=True) if len(clip) >= 2 * SHORTEST]
    halves = [_part(clip, half) for _, clip in long for half in (0, 1)]
    seen_of = [split_label(label) for label in judge.labels_seen(judge.embed(halves))]
    for (one, _), first, second in zip(long, seen_of[::2], seen_of[1::2], strict=True):
        one.halves = first, second
    return scores


def _part(clip: Clip, half: int) -> Clip:
    middle = len(clip) // 2
    return Clip(clip.frames[middle:] if half else clip.frames[:middle], clip.fps)


def _clip_rows(scores: Sequence[Scores], judge: Judge | None) -> list[Row]:
    """What clips measure by themselves."""
    kept = [s for s in scores if not s.failure]
    rows = _seen_rows(scores, judge) if judge else []
    rows.append(share("readable", len(kept), len(scores), "decoded, with at least one frame; what follows is of these"))
    if not kept:
        return rows
    rows.append(mean_row("duration", [s.seconds for s in kept], "mean length", "s"))
    moving = [s.motion for s in kept if s.motion.change is not None]
    if not moving:
        return rows
    still = sum(m.still for m in moving)
    rows.append(share("still", still, len(moving), "frames differ by less than half a grey level", better="real"))
    told = {
        "change": ("mean |frame difference| of pixels in [0, 100]", 100.0),
        "flicker": ("mean |difference of mean brightness| of frames, of [0, 100]", 100.0),
        "roughness": ("mean |second difference| of frames over that of first differences", 1.0),
        "speed": ("of the centre of what moves, % of the diagonal a frame", 100.0),
        "jerk": ("mean change of that velocity over mean speed: 0 straight on, 2 to and fro", 1.0),
    }
    for name, (protocol, scale) in told.items():
        values = [scale * value for m in moving if (value := getattr(m, name)) is not None]
        rows.append(mean_row(f"motion_{name}", values, protocol))
    return rows


def _seen_rows(scores: Sequence[Scores], judge: Judge) -> list[Row]:
    """What a judge sees: exactly the classes asked, the same ones in both halves, motion that nothing was done to."""
    rows, unreadable = [], sum(bool(s.failure) for s in scores)
    asked = [s for s in scores if s.asked is not None] if judge.classes else []
    if asked:
        right, n = sum(s.seen == s.asked for s in asked), len(asked) + unreadable
        rows.append(share("label_accuracy", right, n, f"{judge.name} sees exactly the classes asked; failed is wrong"))
        counts = sorted({len(s.asked or ()) for s in asked})
        for count in counts if len(counts) > 1 else ():
            own = [s for s in asked if len(s.asked or ()) == count]
            right = sum(s.seen == s.asked for s in own)
            rows.append(share(f"label_accuracy_of_{count}", right, len(own), f"the same, where {count} were asked"))
    halves = [s.halves for s in scores if s.halves] if judge.classes else []
    if halves:
        same = sum(first == second for first, second in halves)
        protocol = f"{judge.name} sees the same classes in the first half and in the second"
        rows.append(share("identity_stability", same, len(halves), protocol))
    changes = [s.change for s in scores if s.change]
    if changes:
        sound = sum(change == CHANGES[0] for change in changes)
        protocol = f"{judge.name} thinks it neither {', '.join(CHANGES[1:-1])} nor {CHANGES[-1]}"
        rows.append(share("natural_motion", sound, len(changes), protocol))
    return rows


def _named(clips: Sequence[Clip], held_out: Sequence[Clip]) -> dict[str, tuple[list[Clip], Clip]]:
    """By name: the clips, and the reference's clip of the same name and shape."""
    real = {_stem(clip): clip for clip in held_out if clip.name}
    pairs: dict[str, tuple[list[Clip], Clip]] = {}
    for clip in clips:
        other = real.get(_stem(clip)) if clip.name else None
        if other is not None and other.frames.shape == clip.frames.shape:
            pairs.setdefault(_stem(clip), ([], other))[0].append(clip)
    return pairs


def _stem(clip: Clip) -> str:
    return Path(clip.name).with_suffix("").as_posix()


def _pair_rows(clips: Sequence[Clip], held_out: Sequence[Clip]) -> list[Row]:
    """Clips against the reference's of the same name and shape; none unless half of them have one."""
    pairs = [(a.frames, b.frames) for some, b in _named(clips, held_out).values() for a in some]
    if not pairs or len(pairs) < len(clips) / 2:
        return []
    name = "of clips and the reference's of the same name, mean over frames and clips"
    rows = [
        mean_row("psnr", [float(psnr(a, b).mean()) for a, b in pairs], f"8 bits, {name}", "dB", better="higher"),
        mean_row("mse", [float(mse(a, b).mean()) for a, b in pairs], f"pixels in [0, 1], {name}", better="lower"),
    ]
    large = [(a, b) for a, b in pairs if min(a.shape[1:3]) >= WINDOWS["gaussian"]]
    if large:
        protocol = f"Gaussian window of 11 x 11, {name}"
        rows.append(mean_row("ssim", [float(ssim(a, b).mean()) for a, b in large], protocol, better="higher"))
    protocol = "mean |difference of frame differences| of clips and the reference's of the same name, of [0, 1]"
    return [*rows, mean_row("temporal_error", [temporal_error(a, b) for a, b in pairs], protocol, better="lower")]


def _predictions(clips: Sequence[Clip], held_out: Sequence[Clip], given: int, thresholds: Sequence[float]) -> list[Row]:
    pairs = _named(clips, held_out)
    if not pairs:
        raise ValueError("given=N compares with the reference's clips of the same names and shapes: there are none")
    return prediction_rows(
        [some for some, _ in pairs.values()], [real for _, real in pairs.values()], given, thresholds
    )


def _lengths(clips: Sequence[Clip]) -> str:
    """How long the clips are, in words."""
    lengths = sorted({min(map(len, clips), default=0), max(map(len, clips), default=0)})
    return f"clips of {' to '.join(map(str, lengths))} frames"
