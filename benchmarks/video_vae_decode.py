"""Memory of decoding long videos: the causal autoencoder piece by piece, at once, and that of diffusers.

    python benchmarks/video_vae_decode.py [--lengths 17 65 257 1025] [--modes ...] [--out FILE]

Random weights, latents of 128 x 128 pixels in colour, 4 x 8 x 8 pixels a position, 16 numbers each, fp32. Every figure
is of a process of its own: how far its resident memory (VmHWM of Linux) rises above what it is before decoding.

    streamed   decode_chunks, latents drawn and frames dropped piece by piece, as when they are written to a file
    whole      decode: the same pieces, all frames kept
    at once    every layer over the whole video, as without a causal cache
    wan        diffusers' AutoencoderKLWan of about as many parameters: a causal cache too, all frames kept

Then whether the pieces are bit by bit the same whatever their size, and how far "at once" is from them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _tables import table, write_figures
from torch import Tensor

from noiseloom.modalities.video.autoencoder import VideoAutoencoder

MODES = ("streamed", "whole", "at once", "wan")
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CHUNKS = (1, 2, 3, 5, 16, 1_000_000)  # latent frames


def memory(name: str) -> float:
    """VmRSS or VmHWM, now or at most, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def wan(width: int) -> torch.nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=width, z_dim=16)


def decoders(model: torch.nn.Module) -> int:
    """Parameters of the half that decodes."""
    parts = ("leave", "decoder", "output", "post_quant_conv")
    return sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in parts)


def drawn(count: int, size: int) -> Tensor:
    return torch.randn(1, count, size // 8, size // 8, 16)


def work(mode: str, count: int, size: int, chunk: int, width: int) -> Callable[[], int]:
    """What is measured; it returns how many frames it made."""
    if mode == "wan":
        other, latents = wan(width).eval(), drawn(count, size).permute(0, 4, 1, 2, 3).contiguous()
        return lambda: other.decode(latents).sample.shape[2]
    model = VideoAutoencoder().eval()
    if mode == "streamed":

        def pieces() -> Iterator[Tensor]:
            for start in range(0, count, chunk):
                yield drawn(min(chunk, count - start), size)

        return lambda: sum(frames.shape[1] for frames in model.decode_chunks(pieces()))
    latents = drawn(count, size)
    if mode == "whole":
        return lambda: model.decode(latents).shape[1]
    return lambda: model._frames(latents, None)[0][:, model.factors[0] - 1 :].shape[1]


@torch.inference_mode()
def measure(mode: str, frames: int, size: int, chunk: int, width: int, threads: int) -> None:
    """Print the figures of this process."""
    torch.set_num_threads(threads)
    run = work(mode, (frames - 1) // 4 + 1, size, chunk, width)
    PEAK_RESET.write_text("5")
    before, started = memory("VmRSS"), time.perf_counter()
    made = run()
    seconds = time.perf_counter() - started
    if made != frames:
        raise SystemExit(f"{mode} made {made} frames, not {frames}")
    print(json.dumps({"mib": memory("VmHWM") - before, "ms_a_frame": 1000 * seconds / frames}))


@torch.inference_mode()
def equality(frames: int, size: int) -> tuple[dict[str, bool], float]:
    """Whether pieces of each size give the same bits as ``decode``; and the largest difference of "at once"."""
    torch.manual_seed(0)
    model, latents = VideoAutoencoder().eval(), drawn((frames - 1) // 4 + 1, size)
    for p in model.parameters():
        p.add_(torch.randn_like(p), alpha=0.02)  # off its initialisation, at which time does not mix
    plain = model.decode(latents)
    same = {
        str(min(chunk, latents.shape[1])): torch.equal(
            plain, torch.cat([*model.decode_chunks(latents.split(chunk, 1))], 1)
        )
        for chunk in CHUNKS
    }
    at_once = model._frames(latents, None)[0][:, model.factors[0] - 1 :]
    return same, float((at_once - plain).abs().max() / plain.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[17, 65, 257, 1025], help="frames: 4 k + 1")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--most", type=int, default=257, help="the most frames for wan, which takes long")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=4, help="latent frames of a piece")
    parser.add_argument("--width", type=int, default=10, help="base_dim of wan")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a process of its own: mode and frames
    arguments = parser.parse_args()
    if any(length < 1 or length % 4 != 1 for length in arguments.lengths):
        parser.error("lengths are 4 k + 1")
    if arguments.one:
        mode, frames = arguments.one
        measure(mode, int(frames), arguments.size, arguments.chunk, arguments.width, arguments.threads)
        return
    if not PEAK_RESET.exists():
        print("skipped: memory is measured by Linux's /proc.")
        return
    modes = [mode for mode in arguments.modes if mode != "wan" or importlib.util.find_spec("diffusers")]
    parameters = {"ours": decoders(VideoAutoencoder())} | (
        {"wan": decoders(wan(arguments.width))} if "wan" in modes else {}
    )
    counts = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in parameters.items())
    print(f"{arguments.size} x {arguments.size} pixels, pieces of {arguments.chunk} latent frames, ", end="")
    print(f"{arguments.threads} threads, torch {torch.__version__}; parameters of the decoders, M: {counts}\n")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for mode in modes:
        for length in arguments.lengths:
            if mode == "wan" and length > arguments.most:
                continue
            options = [
                str(x)
                for name in ("size", "chunk", "width", "threads")
                for x in (f"--{name}", getattr(arguments, name))
            ]
            made = subprocess.run(
                [sys.executable, __file__, *options, "--one", mode, str(length)], capture_output=True, text=True
            )
            if made.returncode:
                print(f"{mode}, {length} frames: failed ({(made.stderr.splitlines() or [str(made.returncode)])[-1]})")
                continue
            figures.setdefault(mode, {})[str(length)] = json.loads(made.stdout)
    head = ["", *(f"{length} frames" for length in arguments.lengths)]
    for key, what in (("mib", "MiB above the memory before"), ("ms_a_frame", "ms a frame")):
        rows = [[mode, *(by.get(str(n), {}).get(key) for n in arguments.lengths)] for mode, by in figures.items()]
        print(f"{what}\n\n{table(head, rows)}\n", flush=True)
    same, off = equality(min(max(arguments.lengths), 65), arguments.size)
    print(
        table(
            ["latent frames of a piece", *same],
            [["same bits as decode", *("yes" if one else "NO" for one in same.values())]],
        )
    )
    print(f"\nat once: off by {off:.1e} of the largest value, at most")
    facts = {name: getattr(arguments, name) for name in ("size", "chunk", "threads")}
    write_figures(
        arguments.out, {**facts, "parameters": parameters, "memory": figures, "same_bits": same, "at_once_off": off}
    )


if __name__ == "__main__":
    main()
