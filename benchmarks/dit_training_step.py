"""A training step of our DiT against diffusers' ``DiTTransformer2DModel`` at equal size, on the CPU.

    python benchmarks/dit_training_step.py [--rounds 7] [--threads 2] [--parameters default|equal] [--json FILE]

Both: width 384, depth 12, 6 heads, 256 tokens (4 x 32 x 32, patches of 2), batch 8, 10 classes; forward, mean square
and backward, no optimizer. The MLPs have equally many parameters. diffusers' model repeats its time embedding in every
block, 2.7 M parameters without arithmetic to speak of; ``--parameters equal`` widens our MLP until the totals agree,
which is 10 % more arithmetic than theirs. Beyond the contest, ours has rotary positions and QK-norm, theirs neither.

The models take turns, the order swaps every round; figures are medians, the ratio is the median of the rounds' ratios.
Needs diffusers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from noiseloom.core.backbones import DiT

BATCH, CHANNELS, SIZE, CLASSES, WIDTH, DEPTH, HEADS = 8, 4, 32, 10, 384, 12, 6
MODES = {"fp32 eager": (False, False), "bf16 autocast eager": (True, False), "bf16 autocast compiled": (True, True)}
RECOMMENDED = "bf16 autocast compiled"


def theirs() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS,
        num_layers=DEPTH,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )


def ours(mlp_ratio: float) -> nn.Module:
    return DiT(CHANNELS, (2, 2), width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=mlp_ratio, labels=CLASSES)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def wake(model: nn.Module) -> nn.Module:
    """Leave the zero initialisation, so that every gradient is alive and no arithmetic meets only zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
    return model


def step_of(model: nn.Module, diffusers: bool, bf16: bool, compiled: bool) -> Callable[[], float]:
    """A function that runs one training step and returns its loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=generator)
    target = torch.randn(x.shape, generator=generator)
    t = torch.rand(BATCH, generator=generator)
    label = torch.randint(CLASSES, (BATCH,), generator=generator)
    run = torch.compile(model) if compiled else model

    def forward() -> Tensor:
        if diffusers:
            return run(x, timestep=(t * 999).long(), class_labels=label, return_dict=False)[0]
        return run(x, t, {"label": label})

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = forward()
        loss = (output.float() - target).square().mean()
        loss.backward()
        return loss.item()

    return step


def alternate(steps: dict[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Milliseconds of each step in every round; the order swaps from round to round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-warm_up, rounds):
        for name in sorted(steps, reverse=bool(turn % 2)):
            start = time.perf_counter()
            steps[name]()
            if turn >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parameters", choices=("default", "equal"), default="default")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    them = wake(theirs())
    us = ours(4.0)
    if arguments.parameters == "equal":
        ratio = 4.0 + (parameters(them) - parameters(us)) / (2 * DEPTH * WIDTH * WIDTH)
        us = ours(round(ratio * WIDTH / 96) * 96 / WIDTH)  # a hidden width in multiples of 64
    us = wake(us)
    repeated = sum(parameters(block.norm1.emb.timestep_embedder) for block in them.transformer_blocks[1:])
    counts = [f"{n / 1e6:.2f} M" for n in (parameters(them), parameters(them) - repeated, parameters(us))]
    print("parameters: diffusers {} ({} with one time embedding), noiseloom {}".format(*counts))
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds, ms a training step\n")
    print(f"{'mode':26}{'diffusers':>12}{'noiseloom':>12}{'ratio':>8}")
    medians: dict[str, dict[str, float]] = {}
    for mode in arguments.modes:
        steps = {"theirs": step_of(them, True, *MODES[mode]), "ours": step_of(us, False, *MODES[mode])}
        times = alternate(steps, arguments.rounds, arguments.warm_up)
        ratio = statistics.median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True))
        medians[mode] = {name: statistics.median(values) for name, values in times.items()} | {"ratio": ratio}
        print(f"{mode:26}{medians[mode]['theirs']:12.0f}{medians[mode]['ours']:12.0f}{ratio:8.2f}", flush=True)
    if "fp32 eager" in medians and RECOMMENDED in medians:
        a, b = medians["fp32 eager"]["theirs"], medians[RECOMMENDED]["ours"]
        print(f"{'as users run it':26}{a:12.0f}{b:12.0f}{a / b:8.2f}   (diffusers fp32 eager, ours {RECOMMENDED})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": arguments.threads, "modes": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
