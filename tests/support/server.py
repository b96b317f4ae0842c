"""`fiat serve` in a process of its own, and clients of it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
from support.world import World

SMALL = ("--gin.Native.dtype=float32", "--gin.Native.slots=4", "--gin.Native.block=4", "--gin.Native.prefill_rows=2")


class Server:
    """A running `fiat serve`, what it has printed, and clients of it."""

    def __init__(self, world: World, *arguments: str, env: dict[str, str] | None = None, before: str = ""):
        program = ["-c", f"{before}\nimport sys\nfrom fiat_jax.cli import main\nsys.exit(main())"]
        command = [sys.executable, *(program if before else ["-m", "fiat_jax"]), "serve", "--gin.Serve.port=0"]
        command += ["--gin.Serve.shortest_bucket=512", *arguments]  # few programs to compile
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=world.root, env=world.env | (env or {}), text=True, **pipes)
        self.lines: list[str] = []
        self._clients = contextlib.ExitStack()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def says(self, text: str, seconds: float = 120) -> str:
        """Wait for a line that holds a text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [line for line in list(self.lines) if text in line]
            if found:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} in {self.lines}")

    @property
    def url(self) -> str:
        return self.says("listening on").split()[2].rstrip(",")

    def http(self, **options) -> httpx.Client:
        return self._clients.enter_context(httpx.Client(base_url=self.url, timeout=120, **options))

    def openai(self, key: str = "none", **options) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120, **options)
        return self._clients.enter_context(client)

    def sequences(self) -> float:
        """How many are in slots or wait for one."""
        lines = self.http().get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("fiat_sequences{"))

    def settled(self, seconds: float = 20) -> bool:
        """Wait until there are none."""
        end = time.monotonic() + seconds
        while (left := self.sequences()) and time.monotonic() < end:
            time.sleep(0.05)
        return not left

    def memory(self) -> float:
        """Resident memory, MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def files(self) -> int:
        """How many files and connections are open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> None:
        self._clients.close()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(world: World, *arguments: str, ready: bool = True, **options: Any) -> Iterator[Server]:
    """Start a server, and wait until it is ready; `before` is Python that its process runs first."""
    server = Server(world, *arguments, **options)
    try:
        if ready:
            server.says("ready:")
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.close()
