"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person, or another host that was."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a wish to stop; the next one acts at once, as without
    us.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
