"""A training step of the audio DiT against stable-audio-tools' ``DiffusionTransformer`` of equal size, on the CPU.

    python benchmarks/audio_dit_step.py --peer FOLDER [--rounds 5] [--threads 2] [--modes ...] [--json FILE]

FOLDER is a checkout of stable-audio-tools; else the environment variable STABLE_AUDIO_TOOLS, else an installed package.
Only its four files of the transformer are imported. Where there is none, this prints a line and ends.

All: 256 frames of a 64-d latent, a frame a token, width 384, depth 8, 6 heads, batch 8, conditioned by the time alone;
forward, mean square, backward and AdamW. No EMA, no data.

    released      theirs as Stable Audio 2 configures it: the time is a token in front, no QK-norm
    adaln         theirs with the options that make it most like ours: adaLN and QK-norm by LayerNorm
    parameters    ours with an MLP narrowed until it has as many parameters as the mean of theirs. Every block of ours
                  projects its own modulation: 6 width^2 parameters without arithmetic to speak of, so this one does
                  two thirds of their arithmetic
    arithmetic    ours with an MLP as wide as theirs: the matrix products per token of theirs, a third more parameters

In the modes "eager" and "compiled" all four use the same precision and the same fused AdamW and keep their activations.
Theirs compiles block by block, as their switch ENABLE_TORCH_COMPILE has it, though with static shapes, the faster way.
In "as run" ours does what a recipe does: bf16 autocast, compiled with dynamic shapes, a mask, clipped gradients, fused
AdamW; theirs what its own trainer does: eager, blocks recomputed in the backward pass (no option turns it off), AdamW
of its configurations; under bf16 autocast too, in place of fp16, for which it wants a GPU.

The models take turns and the order rotates; figures are medians, a ratio is the median of the rounds' ratios. The floor
is the arithmetic of the matrix products, each done once forward and twice backward, at the speed of a 2048^3 product.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import io
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noiseloom.core.backbones import DiT
from noiseloom.core.devices import compile_network

CHANNELS = 64
MODES = {  # autocast to bf16, compiled, each side as it is run
    "bf16 as run": (True, True, True),
    "bf16 compiled": (True, True, False),
    "bf16 eager": (True, False, False),
    "fp32 compiled": (False, True, False),
    "fp32 eager": (False, False, False),
}
PACKAGE = "stable_audio_tools"


def find_peer(folder: str | None) -> Path | None:
    """The package's own folder, or None."""
    folder = folder or os.environ.get("STABLE_AUDIO_TOOLS")
    if folder is not None:
        candidates = [Path(folder) / PACKAGE, Path(folder)]
    else:
        spec = importlib.util.find_spec(PACKAGE)
        candidates = [Path(place) for place in (spec.submodule_search_locations or [] if spec is not None else [])]
    return next((path for path in candidates if (path / "models" / "dit.py").is_file()), None)


def import_peer(folder: Path) -> type[nn.Module]:
    """``DiffusionTransformer`` without the packages' ``__init__``, which want every model's dependencies."""
    for name, path in ((PACKAGE, folder), (f"{PACKAGE}.models", folder / "models")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    os.environ["ENABLE_TORCH_COMPILE"] = "0"  # the modes say what is compiled
    with contextlib.redirect_stdout(io.StringIO()):  # a remark that flash_attn, for GPUs, is missing
        network: type[nn.Module] = importlib.import_module(f"{PACKAGE}.models.dit").DiffusionTransformer
    torch._dynamo.config.suppress_errors = False  # it sets it, and eager code would pass for compiled
    return network


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Contest:
    """The size of everything, the four networks, and their training steps."""

    def __init__(self, peer: type[nn.Module], batch: int, tokens: int, width: int, depth: int, heads: int) -> None:
        self.peer, self.width, self.depth, self.heads = peer, width, depth, heads
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, tokens, CHANNELS, generator=generator)
        self.target = torch.randn(self.x.shape, generator=generator)
        self.t = torch.rand(batch, generator=generator)
        self.mask = torch.ones(batch, tokens, dtype=torch.bool)
        size = {"io_channels": CHANNELS, "embed_dim": width, "depth": depth, "num_heads": heads}
        alike = {"global_cond_type": "adaLN", "attn_kwargs": {"qk_norm": "ln"}}
        self.build: dict[str, Callable[[], nn.Module]] = {
            "released": lambda: peer(**size),
            "adaln": lambda: peer(**size, **alike),
            "arithmetic": lambda: self.ours(6.0),
        }
        mean = (parameters(peer(**size)) + parameters(peer(**size, **alike))) / 2
        ratio = 6.0 + (mean - parameters(self.ours(6.0))) / (2 * depth * width**2)
        self.build["parameters"] = lambda: self.ours(round(ratio * width / 96) * 96 / width)  # hidden: 64 times n

    def ours(self, mlp_ratio: float) -> nn.Module:
        return DiT(
            CHANNELS,
            (1,),
            channels_last=True,
            element_times=True,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=mlp_ratio,
        )

    def model(self, name: str) -> nn.Module:
        """Moved off its zero initialisation, so that every gradient is alive and no arithmetic meets only zeros."""
        torch.manual_seed(0)
        model = self.build[name]()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.02)
        return model

    def forward(self, model: nn.Module, rows: int, as_run: bool = False) -> Tensor:
        x, t = self.x[:rows], self.t[:rows]
        if isinstance(model, self.peer):
            return model(x.transpose(1, 2), t, use_checkpointing=as_run).transpose(1, 2)
        return model(x, t, {"mask": self.mask[:rows]} if as_run else {})

    def arithmetic(self, name: str) -> int:
        """Floating-point operations of the matrix products of a step."""
        model = self.model(name)
        # The counter knows the products of the plain attention, not those of the kernel for CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.forward(model, 1).sum().backward()
        return len(self.x) * counter.get_total_flops()

    def step(self, name: str, bf16: bool, compiled: bool, as_run: bool) -> Callable[[], float]:
        """A function that runs one training step and returns its loss."""
        model = self.model(name)
        theirs = isinstance(model, self.peer)
        if compiled and not theirs:
            compile_network(model)
        elif compiled and not as_run:
            for layer in model.get_submodule("transformer.layers").children():
                layer.compile(dynamic=False)
        fused = not (theirs and as_run)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-3, fused=fused)

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = self.forward(model, len(self.x), as_run)
            loss = (output.float() - self.target).square().mean()
            loss.backward()
            if as_run and not theirs:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step


def peak(dtype: torch.dtype, size: int = 2048, rounds: int = 8) -> float:
    """Operations a second of a square product, the best of some."""
    a, b = torch.randn(2, size, size).to(dtype)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def alternate(steps: Mapping[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each step in every round; who begins changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(-warm_up, rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            start = time.perf_counter()
            loss = steps[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
            if not loss < float("inf"):
                raise ArithmeticError(f"{name}: a loss of {loss}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of stable-audio-tools")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="the first compiles")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    for option, value in (("batch", 8), ("tokens", 256), ("width", 384), ("depth", 8), ("heads", 6)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    folder = find_peer(arguments.peer)
    if folder is None:
        print("skipped: no stable-audio-tools. Name a checkout by --peer or STABLE_AUDIO_TOOLS, or install it.")
        return
    torch.set_num_threads(arguments.threads)
    size = [getattr(arguments, name) for name in ("batch", "tokens", "width", "depth", "heads")]
    contest = Contest(import_peer(folder), *size)

    names = list(contest.build)
    counts = {name: parameters(contest.build[name]()) for name in names}
    operations = {name: contest.arithmetic(name) for name in names}
    print("batch {}, tokens {}, width {}, depth {}, heads {}".format(*size), end="; ")
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"\n{'':16}" + "".join(f"{name:>12}" for name in names))
    print(f"{'parameters, M':16}" + "".join(f"{counts[name] / 1e6:12.2f}" for name in names))
    print(f"{'GFLOP a step':16}" + "".join(f"{operations[name] / 1e9:12.1f}" for name in names))

    print("\nms a step (thousand tokens a second; times the floor), and how many times the speed of theirs ours has")
    report: dict[str, dict[str, dict[str, float]]] = {}
    for mode in arguments.modes:
        gc.collect()
        torch.compiler.reset()
        best = peak(torch.bfloat16 if MODES[mode][0] else torch.float32)
        times = alternate({n: contest.step(n, *MODES[mode]) for n in names}, arguments.rounds, arguments.warm_up)
        print(f"\n{mode}; products at {best / 1e9:.0f} GFLOP/s")
        report[mode] = {}
        for name in names:
            median = statistics.median(times[name])
            row = {"ms": 1000 * median, "tokens_per_second": size[0] * size[1] / median}
            row["times_floor"] = median / (operations[name] / best)
            line = f"    {name:12}{row['ms']:8.0f} ({row['tokens_per_second'] / 1e3:6.2f}; {row['times_floor']:5.2f})"
            if name in ("parameters", "arithmetic"):
                for other in ("released", "adaln"):
                    ratio = statistics.median(a / b for a, b in zip(times[other], times[name], strict=True))
                    row[f"speed_over_{other}"] = ratio
                    line += f"   {ratio:5.2f} x {other}"
            report[mode][name] = row
            print(line, flush=True)
    if arguments.json:
        facts = {"size": size, "threads": arguments.threads, "parameters": counts, "operations": operations}
        arguments.json.write_text(json.dumps({**facts, "modes": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
