"""Ctrl-C and SIGTERM as a wish that the loop grants after its step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_NOTE = b"\nstopping after this step and saving; once more stops at once\n"


class Interrupted(SystemExit):
    """A run that was asked to stop and saved itself; uncaught, the process ends with exit code 130."""

    def __init__(self, message: str) -> None:
        super().__init__(130)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupts:
    """Inside the context the first SIGINT or SIGTERM sets ``received``; a second one acts as it would outside."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.__exit__()
        os.write(2, _NOTE)  # print() may not be entered again from a handler
