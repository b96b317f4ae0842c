"""What the server adds to its engine: 64 clients at once, and the time to the first token when there is one.

    .venv/bin/python benchmarks/serving.py --torch-python .venv/bin/python

The model has SmolLM2-135M's shape and random weights, float32. One engine answers the same 64 requests of 64 own and
128 new tokens (`--new`), in turn by itself and behind the server, asked by 64 clients of another process; then one
request at a time, whose first token is waited for, beside an engine that writes one token. Both sides share the
machine's cores with the clients.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from train_step import SHAPE

GOALS = {"seconds_at_64_clients": 1.05, "first_token": 1.2}
CLIENTS, OWN, TRIES = 64, 64, 5


def write_tokenizer(directory: str) -> None:
    """Write a byte-level tokenizer of the model's size, of words that nothing is made of but that decode as usual."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    rng = random.Random(0)
    words = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    while len(words) < SHAPE["vocab_size"] - 1:
        words["Ġ" * rng.randrange(2) + "".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9)))] = None
    vocabulary = {word: n for n, word in enumerate([*words, "</s>"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.save(os.path.join(directory, "tokenizer.json"))
    with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"eos_token": "</s>"}, file)


async def clients(url: str, new: int, prompts: list[list[int]]) -> dict:
    """Ask as all clients do; return how long all took, and how long the first token of each of some more."""
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def ask(ids: list[int], most: int = new) -> int:
            answer = await http.post("/v1/completions", json={"prompt": ids, "max_tokens": most, "temperature": 0})
            assert answer.status_code == 200, answer.text
            return answer.json()["usage"]["completion_tokens"]

        await asyncio.gather(*(ask(ids, 1) for ids in prompts))  # connections are there before the clock starts
        begun = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(ask, prompts)))
        seconds, firsts = time.perf_counter() - begun, []
        for ids in prompts[:TRIES]:
            asked = {"prompt": ids, "max_tokens": 8, "temperature": 0, "stream": True}
            one, first = time.perf_counter(), None
            async with http.stream("POST", "/v1/completions", json=asked) as answer:
                async for line in answer.aiter_lines():
                    if first is None and line.startswith("data: {"):
                        first = time.perf_counter() - one
            firsts.append(first)
    return {"seconds": seconds, "tokens": tokens, "first_token": statistics.median(firsts)}


def served(engine, tokenizer, new: int, prompts: list[list[int]]) -> dict:
    """Put the server before an engine, and let clients of another process ask it."""
    import uvicorn

    from fiat_jax.inference.worker import Worker
    from fiat_jax.serving.app import make_app
    from fiat_jax.serving.config import Serve
    from fiat_jax.serving.gate import Gate
    from fiat_jax.serving.metrics import Metrics
    from fiat_jax.serving.run import listen
    from fiat_jax.serving.service import Service
    from fiat_jax.serving.text import TextModel

    serve = Serve(port=0)
    service, listening = Service(serve, Gate(4 * CLIENTS), Metrics()), listen(serve)
    server = uvicorn.Server(uvicorn.Config(make_app(service, None), log_config=None, access_log=False))
    with Worker(engine) as worker:
        service.open({"model": TextModel("model", worker, tokenizer, serve, service.gate)})
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, __file__, "--ask", url, "--new", str(new)]
        done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=False)
        server.should_exit = True
        thread.join()
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout)


def measure(model: str, new: int, repeats: int) -> dict:
    """Answer with the engine and with the server in turn; return the medians of both."""
    from fiat_jax.experiments import runtime
    from fiat_jax.inference.engine import Engine, EngineConfig
    from fiat_jax.inference.requests import Request
    from fiat_jax.models.model import ModelConfig, load_model
    from fiat_jax.prompts.tokenizer import Tokenizer
    from fiat_jax.sharding import MeshConfig

    runtime.start()
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 250) for _ in range(OWN)] for _ in range(CLIENTS)]
    config = EngineConfig(
        CLIENTS,
        OWN + new,
        block=16,
        short_block=4,
        prefill_rows=8,
        shortest_bucket=OWN,
        alternatives=5,
        order="arrival",
    )
    engine = Engine(load_model(ModelConfig(model, dtype="float32"), MeshConfig().build(), tuned=False), -1, config)
    tokenizer = Tokenizer.from_directory(model)
    asked = [Request(tuple(ids), new) for ids in prompts]
    engine.generate(asked[:2])
    sides: dict[str, list[dict]] = {"engine": [], "server": []}
    for _ in range(repeats):
        begun = time.perf_counter()
        tokens = sum(len(one.tokens) for (one,) in engine.generate(asked))
        seconds, firsts = time.perf_counter() - begun, []
        for ids in prompts[:TRIES]:
            one = time.perf_counter()
            engine.generate([Request(tuple(ids), 1)])
            firsts.append(time.perf_counter() - one)
        sides["engine"].append({"seconds": seconds, "tokens": tokens, "first_token": statistics.median(firsts)})
        sides["server"].append(served(engine, tokenizer, new, prompts))
        print(json.dumps({side: found[-1] for side, found in sides.items()}), flush=True)
    names = ("seconds", "first_token", "tokens")
    return {side: {n: statistics.median(one[n] for one in all_) for n in names} for side, all_ in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="Python with torch and transformers")
    parser.add_argument("--repeats", type=int, default=3, help="times that both sides run in turn")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        print(json.dumps(asyncio.run(clients(args.ask, args.new, json.load(sys.stdin)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers", "random_llama.py")
        subprocess.run([args.torch_python, script, "--config", json.dumps(SHAPE), "--to", model], check=True)
        write_tokenizer(model)
        measured = measure(model, args.new, args.repeats)
    ratios = {
        "seconds_at_64_clients": measured["server"]["seconds"] / measured["engine"]["seconds"],
        "first_token": measured["server"]["first_token"] / measured["engine"]["first_token"],
    }
    print(json.dumps({"ratios": ratios, "goals": GOALS, "measured": measured}))


if __name__ == "__main__":
    main()
