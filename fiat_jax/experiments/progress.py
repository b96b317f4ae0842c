"""Who watches a training run: a bar on a terminal or plain lines elsewhere, and TensorBoard."""

import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fiat_jax.distributed import is_main
from fiat_jax.training.log import Listener

LINE_EVERY_SECONDS = 10.0


def listeners_for(workdir: Path, name: str, console: Console) -> list[Listener]:
    """Return the listeners of a run that has its events in `workdir`; process 0 tells for all."""
    if not is_main():
        return []
    bar = TerminalBar(name, console) if console.is_terminal else PlainLines(name, console)
    return [bar, TensorBoard(workdir / "tensorboard")]


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())


class TerminalBar:
    """A progress bar with loss, real tokens a second and the time left."""

    def __init__(self, name: str, console: Console):
        self._name, self._console = name, console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)

    def begin(self, step: int, num_steps: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(self._name, total=num_steps, completed=step, told="")

    def stepped(self, step: int, metrics: Mapping[str, float]) -> None:
        told = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        self._progress.update(self._task, completed=step + 1, told=told)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._console.print(f"{self._name} after step {step}: {_metrics(metrics)}")

    def end(self) -> None:
        self._progress.stop()


class PlainLines:
    """A line now and then, for logs."""

    def __init__(self, name: str, console: Console):
        self._name, self._console = name, console
        self._num_steps, self._last = 0, 0.0

    def begin(self, step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        if step:
            self._console.print(f"{self._name}: going on from step {step} of {num_steps}")

    def stepped(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY_SECONDS:
            return
        self._last = now
        left = metrics["seconds"] * (self._num_steps - step - 1)
        self._console.print(
            f"{self._name}: step {step + 1}/{self._num_steps}, loss {metrics['loss']:.3f}, "
            f"{metrics['tokens_per_second']:,.0f} tokens/s, {left:.0f} s left"
        )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._console.print(f"{self._name} after step {step}: {_metrics(metrics)}")

    def end(self) -> None:
        pass


class TensorBoard:
    """Events for TensorBoard, written without TensorFlow."""

    def __init__(self, directory: Path):
        self._directory = directory

    def begin(self, step: int, num_steps: int) -> None:
        # tensorboard takes this module, which it does not ship, as the wish to be left without TensorFlow
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(self._directory))

    def stepped(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("train", step, metrics)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("selection", step, metrics)

    def _write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        # made at import, so that pyright does not see them
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def end(self) -> None:
        self._writer.close()
