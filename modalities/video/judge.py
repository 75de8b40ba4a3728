"""A judge of clips: it tells which classes a clip shows, how often each, and whether its motion is sound; sets of clips
are compared by its embeddings.

A small residual network whose convolutions are factorised in space and time (Tran et al. 2018). Frames enter in pairs,
which halves the work and keeps the motion between them. Layers normalise each position over its channels only, and what
is past a clip's end is zeroed wherever frames meet, so nothing depends on padding. A second head learns without labels
what was done to a clip's time, so that the embedding sees motion and not frames alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..component import COMPONENTS, Component
from ..report import Report
from .changes import CHANGES
from .clip import Clip
from .labelled import LabelledVideos, counted, cut, moved, resized, stacked
from .pool import Clips

MOST = 2  # how often a class is counted in a clip; more is as often
_BATCH = 32  # clips embedded at a time
_EPSILON = 1e-5  # of a variance


class Residual(nn.Module):
    """A convolution in space, then one in time, around which the input passes; both see normalised channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, t, h, w, width), with ``mask`` (batch, t, 1, 1, 1): 1 where frames are real, else 0."""
        inside = F.gelu(self.second(_in_space(self.space, F.gelu(self.first(x))))) * mask
        return x + self.time(inside.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


@COMPONENTS.register("video_judge")
class VideoJudge(Component):
    """What is seen in a clip, what was done to its time, and an embedding of it.

    Args:
        classes: what a clip may show; ``fitted`` finds them. Without any it judges motion alone.
        label: the column that names them: "3", or several, "3,8" or "3,3".
        colours: 1 for grey, 3 for RGB; clips of the other kind are converted.
        size: height and width that clips are resized to, a multiple of ``patch``.
        patch: pixels along a position's side in the first stage.
        widths: channels of each stage; from one to the next the sides are halved.
        depths: blocks of each stage.
        embedding: numbers of an embedding.
        gallery: of how many of its training clips it carries embeddings, at most.

    Attributes:
        gallery: embeddings (n, embedding) of clips it was trained on, float16.
    """

    name = "video_judge"
    gallery: Tensor

    def __init__(
        self,
        classes: Sequence[str] = (),
        label: str = "label",
        colours: int = 1,
        size: int = 64,
        patch: int = 4,
        widths: Sequence[int] = (64, 128),
        depths: Sequence[int] = (1, 2),
        embedding: int = 128,
        gallery: int = 0,
    ) -> None:
        super().__init__()
        if colours not in (1, 3):
            raise ValueError(f"colours={colours}. Choices: 1, 3")
        if size < 1 or size % patch:
            raise ValueError(f"size={size}: a multiple of patch={patch}")
        if not widths or len(widths) != len(depths):
            raise ValueError(f"a judge has a depth for each width, not {len(depths)} for {len(widths)}")
        self.classes, self.label, self.colours = [str(one) for one in classes], label, colours
        self.size, self.patch, self.embedding = size, patch, embedding
        self.widths, self.depths = list(widths), list(depths)
        pairs = zip([2 * colours * patch**2, *self.widths[:-1]], self.widths, strict=True)
        self.enter = nn.ModuleList(nn.Conv2d(a, b, 3, 1 if i == 0 else 2, 1) for i, (a, b) in enumerate(pairs))
        self.stages = nn.ModuleList(
            nn.ModuleList(Residual(width) for _ in range(depth)) for width, depth in zip(widths, depths, strict=True)
        )
        self.last = nn.LayerNorm(self.widths[-1])
        self.project = nn.Linear(4 * self.widths[-1], embedding)
        self.shown = nn.Linear(embedding, len(self.classes) * (MOST + 1)) if self.classes else None
        self.change = nn.Linear(embedding, len(CHANGES))
        self.register_buffer("gallery", torch.zeros(gallery, embedding, dtype=torch.float16))

    @property
    def config(self) -> dict[str, Any]:
        plain = ("classes", "label", "colours", "size", "patch", "widths", "depths", "embedding")
        return {**{key: getattr(self, key) for key in plain}, "gallery": len(self.gallery)}

    @classmethod
    def fitted(cls, sources: Sequence[str], data: Mapping[str, Any], **options: Any) -> VideoJudge:
        """``classes`` are those of the training clips; none where a source has no such column."""
        clips = Clips(options.get("colours", 1), sources, "train", **data)
        return cls(**{"classes": clips.classes(options.get("label", "label")), **options})

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Clips (batch, t, size, size, colours) in [0, 1] with so many real frames, at least 1, to embeddings (batch,
        embedding), float32."""
        pairs = (frames.shape[1] + 1) // 2
        times = torch.arange(2 * pairs, device=frames.device).expand(len(frames), -1)
        chosen = torch.minimum(times, lengths[:, None] - 1)  # a clip's last frame makes up the last pair
        frames = frames[torch.arange(len(frames), device=frames.device)[:, None], chosen]
        mask = (times[:, ::2] < lengths[:, None])[..., None, None, None].float()
        x = _in_patches(frames, self.patch)
        for enter, stage in zip(self.enter, self.stages, strict=True):
            x = _in_space(enter, x)
            for block in stage.children():
                x = block(x, mask.to(x.dtype))
        x = F.gelu(self.last(x)).float() * mask
        count = mask.flatten(1).sum(1, keepdim=True)
        area = x.shape[2] * x.shape[3]
        mean = x.sum((1, 2, 3)) / (count * area)
        variance = ((x - mean[:, None, None, None]) ** 2 * mask).sum((1, 2, 3)) / (count * area)
        strongest = x.amax((2, 3)).sum(1) / count  # what is somewhere in a frame
        clearest = x.mean((2, 3)).masked_fill(mask[..., 0, 0] == 0, -torch.inf).amax(1)  # when least is hidden
        return self.project(torch.cat([mean, torch.sqrt(variance + _EPSILON), strongest, clearest], 1)).float()

    def told(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of how often each class is shown (n, classes, MOST + 1), and of ``CHANGES`` (n, changes)."""
        x = F.gelu(embeddings)
        shown = x.new_zeros(len(x), 0) if self.shown is None else self.shown(x)
        return shown.float().reshape(len(x), len(self.classes), MOST + 1), self.change(x).float()

    @torch.no_grad()
    def embed(self, clips: Sequence[Clip]) -> Tensor:
        """Clips of any size, length and colours to (n, embedding), float32, on the CPU."""
        device = self.project.weight.device
        rows = [torch.zeros(0, self.embedding)]
        for start in range(0, len(clips), _BATCH):
            frames, lengths = stacked([resized(c, self.size, self.colours) for c in clips[start : start + _BATCH]])
            rows.append(self(frames.to(device), lengths.to(device)).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def labels_seen(self, embeddings: Tensor) -> list[str]:
        """The label that each clip should have: its classes in order, separated by commas."""
        counts = self.told(embeddings.to(self.project.weight.device))[0].argmax(2).tolist()
        return [",".join(c for c, n in zip(self.classes, own, strict=True) for _ in range(n)) for own in counts]

    @torch.no_grad()
    def changes_seen(self, embeddings: Tensor) -> Tensor:
        """Probabilities (n, changes) of what was done to each clip's time, in the order of ``CHANGES``."""
        return self.told(embeddings.to(self.project.weight.device))[1].softmax(1).cpu()

    def dataset(self, sources: Sequence[str], split: str, **data: Any) -> Clips:
        return Clips(self.colours, sources, split, **data)

    def example(self, items: Sequence[Clip], generators: Sequence[Generator] | None = None) -> LabelledVideos:
        clips = [resized(item, self.size, self.colours) for item in items]
        if generators is not None:
            clips = [moved(clip, own) for clip, own in zip(cut(clips, generators), generators, strict=True)]
        shown = [counted(item.values.get(self.label), self.classes, MOST) for item in items]
        return LabelledVideos(*stacked(clips), torch.tensor(shown, dtype=torch.long).reshape(len(items), -1))

    def measure(self, train: Clips) -> None:
        """Take the embeddings of training clips, evenly spaced, into the gallery."""
        count = min(len(self.gallery), len(train))
        clips = [train[index * len(train) // count] for index in range(count)]
        self.gallery = self.embed(clips).half().to(self.gallery.device)

    def evaluate(self, held_out: Clips) -> Report:
        """The scores that generated clips get, here of real ones."""
        from .metrics import evaluate

        clips = [held_out[index] for index in range(len(held_out))]
        return evaluate(clips, judge=self, controls=True, title="judge on held-out clips")


def _in_space(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution of images over each frame of (batch, t, h, w, channels)."""
    images: Tensor = layer(x.flatten(0, 1).permute(0, 3, 1, 2))
    return images.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _in_patches(frames: Tensor, patch: int) -> Tensor:
    """(batch, 2 n, h, w, c) to (batch, n, h / patch, w / patch, 2 patch^2 c): what a position sees of a pair."""
    pairs = frames.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).unflatten(1, (-1, 2))
    return pairs.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)
