"""A conversation of several messages in a model's chat template, as token ids."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.prompts.chat import RENDERING, render_template
from fiat_jax.prompts.tokenizer import Tokenizer

MARK = re.compile(r"⟦fiat: message (\d+)⟧")  # stands for what a message says
BEFORE, BEHIND = "\u2003", "\u2002"  # white space that no template writes by itself: where it is gone, it was stripped


def conversation_ids(
    tokenizer: Tokenizer, messages: Sequence[tuple[str, str]], variables: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the ids of messages (role, text) up to where the answer begins.

    Special tokens are the template's alone: what a message says never becomes one. A conversation of one user turn has
    the ids that the renderer makes of an instruction file that says `chat`.

    Raises:
        UserError: no chat template, or one that does not take these messages or does not show them in their order.
    """
    if tokenizer.chat_template is None:
        raise UserError("the model has no chat template; ask for completions of a prompt instead")
    told = [{"role": role, "content": f"{BEFORE}⟦fiat: message {n}⟧{BEHIND}"} for n, (role, _) in enumerate(messages)]
    if taken := sorted(set(variables or {}) & {*RENDERING, *tokenizer.special_tokens}):
        raise UserError(f"{', '.join(taken)}: not a variable of a chat template that a request may set")
    given = {**tokenizer.special_tokens, **(variables or {})}
    text = render_template(tokenizer.chat_template, told, given, prompt=True)
    around = MARK.split(text)
    if around[1::2] != [str(n) for n in range(len(messages))]:
        roles = ", ".join(role for role, _ in messages)
        raise UserError(f"the model's chat template does not show messages of the roles {roles} in turn")
    ids: list[int] = []
    lead = ""  # white space of the template that words of this vocabulary begin with
    for (_, said), before, behind in zip(messages, around[::2], around[2::2], strict=False):
        said = said if before.endswith(BEFORE) else said.lstrip()
        said = said if behind.startswith(BEHIND) else said.rstrip()
        before = before.removeprefix(BEHIND).removesuffix(BEFORE)
        if tokenizer.spaces_lead:
            lead, before = before[len(before.rstrip(" ")) :], before.rstrip(" ")
        ids += tokenizer.encode_template(before)
        ids += tokenizer.encode(lead + said, start=tokenizer.starts_after(before))
    end = around[-1].removeprefix(BEHIND)
    return ids + tokenizer.encode_template(end.rstrip(" ") if tokenizer.spaces_lead else end)
