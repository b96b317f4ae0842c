"""What θ_β is to the generator: something that completes a prompt and says who it is."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fiat_jax.errors import UserError
from fiat_jax.prompts.render import ReasoningPrompt

# why a request got no usable answer
REFUSED = "refused"  # by the model, or by a content filter
HIDDEN = "hidden"  # reasoning was written, and paid for, but is not shown
FAILED = "failed"


@dataclass(frozen=True)
class Completion:
    """What θ_β wrote, without the prompt; `served_by` is what an endpoint says it answered with.

    `cached_tokens` are those of the prompt that the endpoint had read before, `hidden_tokens` those of reasoning that
    it wrote and does not show; `left_out` are options that the request was made without, as the endpoint takes none.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    served_by: str | None = None
    cached_tokens: int | None = None
    hidden_tokens: int | None = None
    left_out: tuple[str, ...] = ()


class Refused(Exception):
    """This prompt will get no answer, however often it is asked; other rows may.

    `bucket` is one of the kinds above; `completion` is what came and is paid for all the same.
    """

    def __init__(self, message: str, bucket: str = FAILED, completion: Completion | None = None):
        super().__init__(message)
        self.bucket, self.completion = bucket, completion


class Unavailable(Exception):
    """No answer came after every attempt."""


async def complete_all(backend: "Backend", prompts: Sequence[ReasoningPrompt]) -> list[Completion | Exception]:
    """Complete a handful of prompts once, and close the backend; of one without an answer return why, and keep others.

    Raises:
        UserError: no prompt can succeed, or none has.
    """

    async def one(prompt: ReasoningPrompt) -> Completion | Exception:
        try:
            return await backend.complete(prompt, seed=0, sample=0)
        except (Refused, Unavailable) as error:
            return error

    try:
        found = await asyncio.gather(*map(one, prompts))
    finally:
        await backend.close()
    failed = [why for why in found if isinstance(why, Exception)]
    if failed and len(failed) == len(found):
        raise UserError(f"none of {len(found)} prompts got an answer; the first: {failed[0]}")
    return found


class Backend(Protocol):
    """θ_β. `complete` is called many times at once within one event loop, `identity` outside of any.

    `first_alone` says that the others wait for the first request: it finds out something for all.
    """

    first_alone: bool

    def identity(self) -> dict[str, object]:
        """What names the model in the store: a weights fingerprint, or name, revision and what the endpoint reports."""
        ...

    def about(self) -> dict[str, Any]:
        """Where and how it is asked, for who would ask it again; never a key."""
        ...

    async def complete(self, prompt: ReasoningPrompt, *, seed: int | None, sample: int) -> Completion:
        """Complete one prompt; raises Refused, Unavailable, or UserError where no row can succeed."""
        ...

    async def close(self) -> None:
        """Release what the event loop holds; called once after the last completion."""
        ...
