"""``map`` in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def parallel(function: Callable[[_In], _Out], items: Iterable[_In], ahead: int = 64) -> Iterator[_Out]:
    """``map`` in threads (decoding and filtering release the interpreter's lock), in order.

    Args:
        ahead: how many results may wait for the one that is taken next.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
