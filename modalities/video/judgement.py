"""What a judge of clips learns: what is shown, and what was done to a clip's time.

    L = sum over classes of the cross-entropy of how often it is shown + change * the cross-entropy of the change

In training half of the clips go through a change drawn for each, in the batch; held-out ones go through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from noiseloom.core.objectives import OBJECTIVES, Losses, Objective
from noiseloom.core.randomness import StepRandomness, generator

from .changes import CHANGES, SHORTEST, order
from .judge import VideoJudge
from .labelled import UNKNOWN, LabelledVideos

_CHANGED = 0.5  # the share of training clips that a change is made to
_SWAPPED = CHANGES.index("swapped")


@OBJECTIVES.register("judgement")
class Judgement(Objective):
    """Cross-entropies.

    Args:
        component: what is trained (given by the run).
        change: the weight of what was done to a clip's time.
        smoothing: the share of the target that is spread over all answers.
    """

    def __init__(self, component: VideoJudge, change: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.change, self.smoothing = change, smoothing

    def forward(self, model: VideoJudge, example: LabelledVideos, random: StepRandomness) -> Losses:
        drawn = [_drawn(own) for own in random.generators]
        frames, changes = changed(example, drawn, random.generators)
        shown, change = model.told(model(frames, example.lengths))
        known = torch.where((changes == _SWAPPED)[:, None], UNKNOWN, example.shown)  # what it then shows is not known
        parts = {
            "label": _shown_loss(shown, known, self.smoothing),
            "change": F.cross_entropy(
                change, changes, reduction="none", label_smoothing=self.smoothing, ignore_index=UNKNOWN
            ),
        }
        return Losses(parts["label"] + self.change * parts["change"], parts)

    def held_out(
        self, model: VideoJudge, example: LabelledVideos, items: Sequence[int], seed: int
    ) -> Iterator[tuple[str, Losses]]:
        """Without smoothing: what is shown, of clips as they are; the change, as a mean over all of them. Beside the
        losses the share of wrong answers, for what is shown of wrong sets. "swapped" takes the batch's next clip."""
        shown, _ = model.told(model(example.frames, example.lengths))
        known = (example.shown != UNKNOWN).all(1) & (example.shown.shape[1] > 0)
        wrong = (shown.argmax(2) != example.shown).any(1) & known
        losses, wrongs = [], []
        for index in range(len(CHANGES)):
            generators = [generator(seed, item, index) for item in items]
            frames, changes = changed(example, [index] * len(items), generators)
            _, change = model.told(model(frames, example.lengths))
            losses.append(F.cross_entropy(change, changes, reduction="none", ignore_index=UNKNOWN))
            wrongs.append(((change.argmax(1) != changes) & (changes != UNKNOWN)).float())
        parts = {
            "label": _shown_loss(shown, example.shown, 0.0),
            "change": torch.stack(losses).mean(0),
            "label_wrong": wrong.float(),
            "change_wrong": torch.stack(wrongs).mean(0),
        }
        yield "", Losses(parts["label"] + self.change * parts["change"], parts)


def changed(example: LabelledVideos, changes: Sequence[int], generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """The frames after a change to each clip, and the changes (batch,); UNKNOWN where a clip is too short to tell, or
    is to be swapped and alone."""
    lengths = example.lengths.tolist()
    orders = torch.zeros(len(lengths), example.frames.shape[1], dtype=torch.long)
    source = torch.arange(len(lengths))[:, None].repeat(1, orders.shape[1])
    made = []
    for row, (length, change, own) in enumerate(zip(lengths, changes, generators, strict=True)):
        orders[row, :length] = order(CHANGES[change], length, own)
        other = (row + 1) % len(lengths)
        swapped = change == _SWAPPED
        if swapped:
            source[row, length // 2 : length] = other
            orders[row, length // 2 : length].clamp_(max=lengths[other] - 1)
        made.append(UNKNOWN if length < SHORTEST or (swapped and other == row) else change)
    device = example.frames.device
    return example.frames[source.to(device), orders.to(device)], torch.tensor(made, device=device)


def _drawn(random: Generator) -> int:
    """A change, or none of them."""
    if torch.rand((), generator=random) >= _CHANGED:
        return 0
    return int(torch.randint(1, len(CHANGES), (), generator=random))


def _shown_loss(logits: Tensor, shown: Tensor, smoothing: float) -> Tensor:
    """(batch,): the sum over classes, 0 where nothing is known."""
    each = F.cross_entropy(
        logits.transpose(1, 2), shown, reduction="none", label_smoothing=smoothing, ignore_index=UNKNOWN
    )
    return each.sum(1)
