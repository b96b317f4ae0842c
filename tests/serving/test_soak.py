"""Minutes of mixed load: memory and open files stay what they are. FIAT_SOAK_SECONDS sets how long (600)."""

import asyncio
import contextlib
import os
import random
import time

import httpx
import numpy as np
import pytest
from support.server import SMALL, serving

SECONDS = float(os.environ.get("FIAT_SOAK_SECONDS", 600))
CLIENTS = 8
STORY = {"model": "large", "prompt": "It is", "max_tokens": 120, "temperature": 1.0}


def asked(n: int) -> tuple[str, dict]:
    """What the n-th request is: each of the server's ways to answer in its turn."""
    row = {"messages": [{"role": "user", "content": f"It is sunny on hill {n}!"}]}
    story = {**STORY, "prompt": f"It is sunny on hill {n}! " * (1 + n % 9), "seed": n}
    return (
        ("completions", {**story, "stream": True}),
        ("completions", {**story, "n": 4, "logprobs": 5, "stop": ["zz", "a b"]}),
        ("completions", {**story, "prompt": [story["prompt"]] * 3, "max_tokens": 1, "echo": True, "logprobs": 1}),
        ("chat/completions", {"model": "large", **row, "max_tokens": 40, "stream": True, "logprobs": True}),
        ("chat/completions", {"model": "fiat", **row, "stream": n % 2 == 0}),
        ("completions", {**story, "max_tokens": 10_000}),  # refused
        ("prefixes", {"model": "large", "prompt": f"It is clear on lake {n}"}),
    )[n % 7]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_memory_is_flat_under_a_load_that_lasts(pair):
    options = ("--bundle=pair", "--gin.Native.path=large", *SMALL, "--gin.Serve.prefix_length=64")
    with serving(pair, *options, "--gin.Serve.max_length=1500") as server:
        ends, sizes, statuses = time.monotonic() + SECONDS, [], dict[object, int]()

        async def client(http, number):
            randomly, n = random.Random(number), number
            while time.monotonic() < ends:
                path, body = asked(n)
                n += CLIENTS
                leaves = asyncio.timeout(randomly.random() if n % 5 == 0 else 60)
                status: object = "left"
                with contextlib.suppress(TimeoutError):
                    async with leaves:
                        answer = await http.post(f"/v1/{path}", json=body)
                        status = answer.status_code
                        if path == "prefixes" and status == 200:
                            await http.delete(f"/v1/prefixes/{answer.json()['id']}")
                statuses[status] = statuses.get(status, 0) + 1
                await asyncio.sleep(randomly.random() / 10)

        async def look():
            while time.monotonic() < ends:
                await asyncio.sleep(SECONDS / 40)
                sizes.append((server.memory(), server.files()))

        async def all_of_it():
            async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
                await asyncio.gather(look(), *(client(http, number) for number in range(CLIENTS)))

        asyncio.run(all_of_it())
        assert server.settled()
        memory, files = np.array(sizes[len(sizes) // 4 :]).T
        growth = np.polyfit(np.linspace(0, 1, len(memory)), memory, 1)[0]
        print(
            f"{SECONDS:g} s: {statuses}; MiB {np.round(memory[[0, -1]], 1)}, growth {growth:.1f}; files {files.max()}"
        )
        assert set(statuses) <= {200, 400, 409, "left"}
        assert growth < 15
        assert files.max() <= files.min() + 2 * CLIENTS
        assert not [line for line in server.lines if "Traceback" in line]
