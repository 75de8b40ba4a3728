"""A small denoiser on one-dimensional Gaussian data, and runs of it in processes that can be killed.

``python -m tests.core.training.toy crashes DIRECTORY`` and ``... ranks DIRECTORY`` import once and fork for each run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.objectives import Denoising, Example
from noiseloom.core.spaces import Euclidean
from noiseloom.core.training import TrainerConfig, TrainResult, checkpoint, train

MEAN, STD = 1.0, 0.5


class Net(nn.Module):
    """An MLP of (x, t, previous) with dropout, whose last input layer is unused without self-conditioning."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.enter, self.previous = nn.Linear(3, width), nn.Linear(1, width)
        self.dropout, self.leave = nn.Dropout(dropout), nn.Linear(width, 1)

    def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Tensor | None = None) -> Tensor:
        t = t.to(x).reshape(-1, 1).expand(len(x), 1)
        hidden = self.enter(torch.cat([x, t, t * t], 1))
        if previous is not None:
            hidden = hidden + self.previous(previous)
        return self.leave(self.dropout(torch.tanh(hidden)))


class Gaussian:
    """Training data: scalars from N(MEAN, STD^2), shifted a little by their generators, as an augmentation is."""

    sizes = None

    def __init__(self, count: int = 64, jitter: float = 0.01) -> None:
        self.values = MEAN + STD * torch.randn(count, 1, generator=torch.Generator().manual_seed(0))
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.values)

    def example(self, indices: Sequence[int], generators: Sequence[Generator] | None) -> Example:
        x = self.values[list(indices)]
        if generators is not None:
            x = x + self.jitter * torch.stack([torch.randn(1, generator=g) for g in generators])
        return Example(x, Euclidean(), {})


def config(**options: Any) -> TrainerConfig:
    defaults = {
        "steps": 6, "batch_size": 8, "lr": 1e-2, "warmup": 2, "checkpoint_every": 2, "keep": 1, "eval_every": 3,
        "eval_samples": 16, "log_every": 2, "device": "cpu",
    }  # fmt: skip
    return TrainerConfig(**{**defaults, **options})


def denoiser(**options: Any) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Net(**options))


def run(directory: Path, dropout: float = 0.1, **options: Any) -> TrainResult:
    """A whole run, or the rest of one."""
    objective = Denoising(self_condition=0.5, uncertainty=[""])
    return train(denoiser(dropout=dropout), objective, Gaussian(), config(**options), directory, valid=Gaussian(32))


def files(directory: Path) -> dict[str, bytes]:
    """Everything that a run left which does not tell the time."""
    found = {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if name != "timings.jsonl"}


def fork(function: Callable[[], Any], environment: dict[str, str] | None = None) -> int:
    """Run ``function`` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment or {})
        function()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def wait(child: int) -> int:
    """The exit code of a child; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(call: int) -> Callable[..., Any]:
    """Make the ``call``-th operation on the disk that a checkpoint does the process's last."""
    count = 0

    def wrapped(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return counted

    for module, name in ((os, "fsync"), (os, "rename"), (shutil, "rmtree")):
        setattr(module, name, wrapped(getattr(module, name)))
    original = checkpoint._write

    def half_written(path: Path, content: bytes) -> str:
        nonlocal count
        if count + 1 == call:
            path.write_bytes(content[: len(content) // 2])
        return original(path, content)

    checkpoint._write = half_written
    return wrapped


def crashes(directory: Path, stride: int = 7) -> None:
    """Kill a run at every ``stride``-th operation on the disk, start it again, and compare with one left alone."""
    assert wait(fork(lambda: run(directory / "whole"))) == 0
    whole, call, died = files(directory / "whole"), 1 - stride, True
    while died:
        call += stride
        place = directory / f"at{call}"

        def doomed(call: int = call, place: Path = place) -> None:
            dying(call)
            run(place)

        died = wait(fork(doomed)) == -signal.SIGKILL
        assert wait(fork(lambda place=place: run(place))) == 0
        assert files(place) == whole, f"killed at operation {call}"
        shutil.rmtree(place)
    long = {"steps": 40, "eval_every": 10, "checkpoint_every": 4, "log_every": 3}
    started = time.perf_counter()
    assert wait(fork(lambda: run(directory / "long", **long))) == 0
    seconds = time.perf_counter() - started
    for _ in range(4):
        child = fork(lambda: run(directory / "killed", **long))
        time.sleep(random.uniform(0.1, 0.5) * seconds)
        os.kill(child, signal.SIGKILL)
        wait(child)
    assert wait(fork(lambda: run(directory / "killed", **long))) == 0
    assert files(directory / "killed") == files(directory / "long"), "killed at random moments"
    print(f"{call // stride} kills at operations, 4 at random")


def ranks(directory: Path) -> None:
    """The same training and sampling in one process and in two; everything is saved for the test to compare."""
    from tests.core.toy_modality import pipeline, save_values

    def work(out: Path) -> None:
        run(out, dropout=0.0, steps=12, batch_size=9, accumulate=2)
        save_values(pipeline().sample(10, seed=3, steps=5, batch_size=3, sampler="ddpm", progress=False), out)

    assert wait(fork(lambda: work(directory / "one"))) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    children = [
        fork(lambda: work(directory / "two"), shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
    assert [wait(child) for child in children] == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for slow in ("accelerate", "torch._dynamo", "tqdm.auto", "safetensors.torch"):  # once, before the forks
        import_module(slow)
    {"crashes": crashes, "ranks": ranks}[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
