"""What a filled store costs: `fiat reason` run again over 10,000 rows, and memory while 100,000 are written and read.

    .venv/bin/python benchmarks/reasoning_store.py

The rerun is the whole process, from its start to its exit, against an endpoint on loopback that has nothing to do but
say who it is; the run before it, which fills the store, is timed as well. Memory is the largest growth of private
memory of a process that does one thing with a set of 100,000 records of 2 kB, in units of the bytes on disk.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from load import Peak, _private_bytes

ROWS, RECORDS = 10_000, 100_000
TEXT = "Because the evening is cold and the lake is near. " * 40
ANSWER = "It is so. So the answer is yes."
# keys are held, texts are not: 64 characters and some pointers for each row
GOALS = {"rerun, seconds": 5.0, "write": 0.02, "missing": 0.15, "card": 0.3, "verify": 0.1}
PROMPT = """
version: 1
name: speed
fields: {question: text}
labels: {"yes": "yes", "no": "no"}
reasoning:
  instructions: Is it so?
  example: |
    Question: {question}
    Reasoning: {rationale} So the answer is {answer}.
  exemplars: {ids: []}
  decoding: {temperature: 0.0, max_tokens: 64}
  extract: {kind: after, text: "So the answer is"}
answer:
  template: |
    {question}
    Answer: {answer}
"""


class Handler(BaseHTTPRequestHandler):
    """Answers every request at once with the same words."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_GET(self):
        self._answer({"data": [{"id": "big"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"message": {"content": ANSWER}, "finish_reason": "stop"}
        self._answer({"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 9}})

    def _answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def rerun(scratch: Path) -> dict:
    """Fill a store by `fiat reason`, and run the same command again."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = [{"id": f"r{n}", "question": f"Is number {n} so?", "answer": "yes"} for n in range(ROWS)]
    (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (scratch / "prompt.yaml").write_text(PROMPT)
    _write_tokenizer(scratch)
    settings = {
        "Task.name": "speed", "Task.fields": "('question',)", "Task.labels": "('yes','no')",
        "Task.splits": {"train": "rows.jsonl"}, "Prompts.file": "prompt.yaml", "Reason.tokenizer": ".",
        "Endpoint.url": f"http://127.0.0.1:{server.server_port}/v1", "Endpoint.model": "big",
        "Generate.concurrency": 32,
    }  # fmt: skip
    command = [sys.executable, "-m", "fiat_jax", "reason", "--backend=openai", "--workdir=out"]
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    seconds = []
    for told in (f"{ROWS:,} written", f"0 written, {ROWS:,} were there"):
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - begun)
        if told not in done.stdout:
            sys.exit(f"expected {told!r}:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return {"fill_seconds": seconds[0], "rerun_seconds": seconds[1]}


def _write_tokenizer(directory: Path) -> None:
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({t: n for n, t in enumerate(["<eos>", *alphabet])}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')


def work(side: str, directory: Path) -> dict:
    """Do one thing with a set of 100,000 records, and return its time and the growth of memory."""
    from fiat_jax.reasoning.card import Tally
    from fiat_jax.store import Provenance, ReasoningStore, Record

    provenance, store = Provenance({"name": "big"}), ReasoningStore(directory)
    key, wanted = provenance.set_key, [hashlib.sha256(str(n).encode()).hexdigest() for n in range(RECORDS)]
    before, begun = _private_bytes(), time.perf_counter()
    with Peak() as peak:
        if side == "write":
            with store.open_set(provenance) as writer:
                for n, row in enumerate(wanted):
                    writer.append(Record(key, row, 0, f"r{n}", TEXT + str(n), "because", "yes", "stop", 20, 400))
        elif side == "missing":
            assert store.missing(key, wanted) == []
        elif side == "card":
            assert Tally.of(store.records(key)).figures(None)["rows"] == RECORDS
        else:
            assert store.verify() == []
    return {"seconds": time.perf_counter() - begun, "growth_mb": (peak.bytes - before) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(work(args.side, args.directory)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        measured = {"rerun": rerun(Path(scratch))}
    with tempfile.TemporaryDirectory() as scratch:
        for side in ("write", "missing", "card", "verify"):
            command = [sys.executable, __file__, "--side", side, "--directory", scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            measured[side] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({side: measured[side]}), flush=True)
        stored = sum(path.stat().st_size for path in Path(scratch).rglob("*.jsonl")) / 1e6
    ratios = {"rerun, seconds": measured["rerun"]["rerun_seconds"]}
    ratios |= {side: measured[side]["growth_mb"] / stored for side in ("write", "missing", "card", "verify")}
    print(json.dumps({"ratios": ratios, "goals": GOALS, "stored_mb": stored, "measured": measured}))


if __name__ == "__main__":
    main()
