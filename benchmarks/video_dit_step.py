"""A training step and a network call of the video DiT against Latte's transformer of equal size, on the CPU.

    python benchmarks/video_dit_step.py --peer FOLDER [--rounds 5] [--threads 2] [--modes ...] [--json FILE]

FOLDER is a checkout of Latte; else the environment variable LATTE. Only its models/latte.py is imported; it needs timm.
Where there is none, this prints a line and ends.

All: 16 frames of a 4 x 16 x 16 latent, patches of 1 x 2 x 2, width 384, depth 12, 6 heads (Latte-S/2), batch 1, one
time for each sample. A step is forward, mean square, backward and AdamW; a call is the forward pass without gradients.
No EMA, no data. The parameters of a block and its matrix products outside attention are as many in all.

    math, flash       theirs with the attention that it is configured with, and with its fused one; that one puts the
                      heads together in the wrong order, at the same cost
    factorised, full  ours; factorised is their arrangement, in turn in space and time

In the modes "eager" and "compiled" all use the same precision and the same fused AdamW. Theirs compiles block by block
with static shapes, the faster way. In "as run" ours does what a recipe does: bf16 autocast, compiled with dynamic
shapes, a time for each frame, clipped gradients, fused AdamW; theirs what its train.py does as configured: eager,
clipped gradients, AdamW; under bf16 autocast too.

The models take turns and the order rotates; figures are medians, a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from audio_dit_step import alternate, parameters
from torch import Tensor, nn

from noiseloom.core.backbones import DiT
from noiseloom.core.devices import compile_network

CHANNELS = 4
MODES = {  # autocast to bf16, compiled, each side as it is run
    "bf16 as run": (True, True, True),
    "bf16 compiled": (True, True, False),
    "bf16 eager": (True, False, False),
    "fp32 eager": (False, False, False),
}
THEIRS, OURS = ("math", "flash"), ("factorised", "full")


def import_peer(folder: str | None) -> type[nn.Module] | None:
    """``Latte`` from its file alone: the package's ``__init__`` wants every model's dependencies."""
    path = Path(folder or os.environ.get("LATTE", ".")) / "models" / "latte.py"
    if not path.is_file() or importlib.util.find_spec("timm") is None:
        return None
    spec = importlib.util.spec_from_file_location("latte", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: type[nn.Module] = module.Latte
    return network


class Contest:
    """The size of everything, the four networks, their training steps and calls."""

    def __init__(
        self, peer: type[nn.Module], batch: int, frames: int, side: int, width: int, depth: int, heads: int
    ) -> None:
        self.peer, self.frames, self.side = peer, frames, side
        self.size = {"width": width, "depth": depth, "heads": heads}
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, frames, CHANNELS, side, side, generator=generator)
        self.target = torch.randn(self.x.shape, generator=generator)
        self.t = torch.rand(batch, frames, generator=generator)

    def model(self, name: str) -> nn.Module:
        """Moved off its zero initialisation, so that every gradient is alive and no arithmetic meets only zeros."""
        torch.manual_seed(0)
        if name in OURS:
            model: nn.Module = DiT(CHANNELS, (1, 2, 2), attention=name, **self.size)
        else:
            width, depth, heads = self.size.values()
            shape = {"input_size": self.side, "num_frames": self.frames, "in_channels": CHANNELS, "learn_sigma": False}
            model = self.peer(**shape, hidden_size=width, depth=depth, num_heads=heads, attention_mode=name)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.02)
        return model

    def forward(self, model: nn.Module, as_run: bool) -> Tensor:
        if isinstance(model, self.peer):
            return model(self.x, 1000 * self.t[:, 0])
        return model(self.x.transpose(1, 2), self.t if as_run else self.t[:, 0]).transpose(1, 2)

    def runs(self, name: str, bf16: bool, compiled: bool, as_run: bool) -> dict[str, Callable[[], float]]:
        """Functions that run one training step, or one call, and return its mean square."""
        model = self.model(name)
        theirs = isinstance(model, self.peer)
        if compiled and not theirs:
            compile_network(model)
        elif compiled and not as_run:
            for layer in model.get_submodule("blocks").children():
                layer.compile(dynamic=False)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0, fused=not (theirs and as_run)
        )

        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = self.forward(model, as_run)
            return (output.float() - self.target).square().mean()

        def step() -> float:
            value = loss()
            value.backward()
            if as_run:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return value.item()

        def call() -> float:
            with torch.no_grad():
                return loss().item()

        return {"step": step, "call": call}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of Latte")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="the first compiles")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    sizes = {"batch": 1, "frames": 16, "side": 16, "width": 384, "depth": 12, "heads": 6}
    for option, value in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    peer = import_peer(arguments.peer)
    if peer is None:
        print("skipped: no Latte. Name a checkout by --peer or LATTE, and install timm.")
        return
    torch.set_num_threads(arguments.threads)
    sizes = {name: getattr(arguments, name) for name in sizes}
    contest = Contest(peer, **sizes)
    counts = {name: parameters(contest.model(name)) for name in (*THEIRS, *OURS)}
    print(", ".join(f"{name} {value}" for name, value in sizes.items()), end="; ")
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds")
    print("parameters, M: " + ", ".join(f"{name} {count / 1e6:.2f}" for name, count in counts.items()))

    print("\nms, and how many times the speed of theirs ours has")
    report: dict[str, dict[str, dict[str, float]]] = {}
    for mode in arguments.modes:
        gc.collect()
        torch.compiler.reset()
        runs = {name: contest.runs(name, *MODES[mode]) for name in counts}
        for kind in ("step", "call"):
            times = alternate({name: runs[name][kind] for name in runs}, arguments.rounds, arguments.warm_up)
            rows: dict[str, dict[str, float]] = {}
            print(f"\n{mode}, {kind}")
            for name in times:
                rows[name] = {"ms": 1000 * statistics.median(times[name])}
                line = f"    {name:12}{rows[name]['ms']:8.0f}"
                for other in THEIRS if name in OURS else ():
                    ratio = statistics.median(a / b for a, b in zip(times[other], times[name], strict=True))
                    rows[name][f"speed_over_{other}"] = ratio
                    line += f"   {ratio:5.2f} x {other}"
                print(line, flush=True)
            report[f"{mode}, {kind}"] = rows
    if arguments.json:
        facts = {"size": sizes, "threads": arguments.threads, "parameters": counts}
        arguments.json.write_text(json.dumps({**facts, "modes": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
