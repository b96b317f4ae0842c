"""SIGINT and SIGTERM: finish the step, save, exit with 75."""

import signal
from types import FrameType


class Signals:
    """While in context, notes SIGINT and SIGTERM instead of dying of them; a second SIGINT is a KeyboardInterrupt."""

    def __init__(self):
        self.received = False
        self._before: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs us handles signals
                break
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore
