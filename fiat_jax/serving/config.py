"""What a server allows."""

import dataclasses
import ipaddress
from typing import Literal

from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig


@dataclasses.dataclass(frozen=True)
class Serve:
    """Where a server listens, and the limits of what it does for one request and for all.

    Args:
        host, port: the address; port 0 takes a free one.
        key_variable: the environment variable with the key that clients must show; where it is unset none is asked for,
            and only this machine can be listened on.
        max_length: tokens of a request, its prompt behind a known prefix and its answer together; 0: what the model
            reads, at most 2,048.
        shortest_bucket: prompts are padded to so many tokens, or to a power of two times it, a program each: a larger
            one starts sooner and computes more.
        prefix_length: tokens of a prefix that clients may have read, at most; the pair's own I_β counts by itself.
        prefixes: how many of them are kept.
        samples: the most completions of a prompt (`n`), and prompts of a request.
        alternatives: the most likeliest tokens that are told in each place (`logprobs`, `top_logprobs`).
        queue: sequences that may wait for a slot; more are refused with 429.
        body_bytes: the most that a request may send.
        request_seconds: what a request may take until its last token.
        drain_seconds: what requests under way are given when the server is asked to stop.
        when_reasoning_fails: "refuse" (503), or "answer" without it, which the answer says.
        tokenizer: the directory of θ_β's tokenizer, for an endpoint that takes its ids.
        log_text: whether the log holds what was asked and answered.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_variable: str = "FIAT_API_KEY"
    max_length: int = 0
    shortest_bucket: int = EngineConfig.shortest_bucket
    prefix_length: int = 0
    prefixes: int = 8
    samples: int = 16
    alternatives: int = 5
    queue: int = 256
    body_bytes: int = 1 << 20
    request_seconds: float = 600.0
    drain_seconds: float = 60.0
    when_reasoning_fails: Literal["refuse", "answer"] = "refuse"
    tokenizer: str = ""
    log_text: bool = False

    def __post_init__(self):
        for name in ("shortest_bucket", "prefixes", "samples", "queue", "body_bytes", "request_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"Serve.{name} is {getattr(self, name)}; it must be more than 0")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"Serve.port is {self.port}; a port is 0 to 65535")
        if self.when_reasoning_fails not in ("refuse", "answer"):
            raise UserError(
                f"Serve.when_reasoning_fails is {self.when_reasoning_fails!r}; expected 'refuse' or 'answer'"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine is listened to."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
