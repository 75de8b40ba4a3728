"""One layer of messages between all pairs of atoms: ours, against e3nn's tensor products in the loop.

    python benchmarks/equivariant_message.py [--threads 2] [--rounds 5]

All move scalars and vectors (64x0e + 32x1o) along all pairs of 64 molecules of 18 atoms, forward and backward, float32,
eager, the weights of each pair made from 32 pair features:

    ours        attention and weighted spherical harmonics (modalities/molecules/blocks.py, AtomBlock as it is, with its
                feed-forward step)
    uvu         e3nn's depth-wise product with the spherical harmonics, one weight a channel and path (NequIP)
    uvw         e3nn's fully connected product, one matrix a path

Prints medians of alternating rounds and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from e3nn import o3
from torch import Tensor, nn

from noiseloom.modalities.molecules.blocks import AtomBlock

BATCH, ATOMS, WIDTH, PAIRS, VECTORS = 64, 18, 64, 32, 32
IRREPS = o3.Irreps(f"{WIDTH}x0e + {VECTORS}x1o")
HARMONICS = o3.Irreps("1x0e + 1x1o")


class PairProduct(nn.Module):
    """Messages ``sum_j W(e_ij) (x_j * Y(r_ij))`` by one of e3nn's products."""

    def __init__(self, fully_connected: bool) -> None:
        super().__init__()
        if fully_connected:
            self.product = o3.FullyConnectedTensorProduct(IRREPS, HARMONICS, IRREPS, shared_weights=False)
        else:
            out, paths = [], []
            for i, (count, ir) in enumerate(IRREPS):
                for j, (_, of) in enumerate(HARMONICS):
                    for result in ir * of:
                        if result in IRREPS:
                            paths.append((i, j, len(out), "uvu", True))
                            out.append((count, result))
            self.product = o3.TensorProduct(IRREPS, HARMONICS, o3.Irreps(out), paths, shared_weights=False)
        self.weights = nn.Linear(PAIRS, self.product.weight_numel)
        self.mix = o3.Linear(self.product.irreps_out.simplify(), IRREPS)

    def forward(self, x: Tensor, e: Tensor, harmonics: Tensor) -> Tensor:
        source = x[:, None].expand(-1, ATOMS, -1, -1)
        return self.mix(self.product(source, harmonics, self.weights(e)).sum(2))


def timed(function: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    function().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    s, v = torch.randn(BATCH, ATOMS, WIDTH), torch.randn(BATCH, ATOMS, 3, VECTORS)
    e, arrow = torch.randn(BATCH, ATOMS, ATOMS, PAIRS), torch.randn(BATCH, ATOMS, ATOMS, 3)
    harmonics = o3.spherical_harmonics(HARMONICS, arrow, normalize=True)
    flat = torch.cat([s, v.transpose(2, 3).flatten(2)], -1)
    ours = AtomBlock(WIDTH, PAIRS, 8, {1: VECTORS})
    c, bias = torch.zeros(BATCH, 1, 6 * WIDTH), torch.zeros(BATCH, 1, 1, ATOMS)

    def block() -> Tensor:
        out, steerables = ours(s, e, {1: v}, {1: harmonics[..., 1:]}, c, bias)
        return out.sum() + steerables[1].sum()

    runs: dict[str, Callable[[], Tensor]] = {"ours": block}
    for name, fully in (("uvu", False), ("uvw", True)):
        layer = PairProduct(fully)
        runs[name] = lambda layer=layer: layer(flat, e, harmonics).sum()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(arguments.rounds + 2):
        for name, run in runs.items():
            took = timed(run)
            if turn >= 2:  # the first calls compile
                seconds[name].append(took)
    base = statistics.median(seconds["ours"])
    print(f"{arguments.threads} threads, forward and backward, {BATCH} molecules of {ATOMS} atoms, {IRREPS}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:<6} {1000 * middle:8.1f} ms   {middle / base:5.1f} x ours")


if __name__ == "__main__":
    main()
