"""A conversation of several messages in a model's chat template, as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.prompts.chat import RENDERING, render_template
from fiat_jax.prompts.tokenizer import Tokenizer

SPACE = "\u2003"  # white space that no template writes by itself: it tells whether a template strips what it is given


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
    marks = [f"⟦fiat: message {n}⟧" for n in range(len(messages))]
    told = [{"role": role, "content": f"{SPACE}{mark}{SPACE}"} for (role, _), mark in zip(messages, marks, strict=True)]
    if taken := sorted(set(variables or {}) & {*RENDERING, *tokenizer.special_tokens}):
        raise UserError(f"{', '.join(taken)}: not a variable of a chat template that a request may set")
    given = {**tokenizer.special_tokens, **(variables or {})}
    text = render_template(tokenizer.chat_template, told, given, prompt=True)
    if [text.count(mark) for mark in marks] != [1] * len(marks) or sorted(marks, key=text.find) != marks:
        roles = ", ".join(role for role, _ in messages)
        raise UserError(f"the model's chat template does not show messages of the roles {roles} in turn")
    ids: list[int] = []
    lead = ""  # white space of the template that words of this vocabulary begin with
    for (_, said), mark in zip(messages, marks, strict=True):
        before, text = text.split(mark, 1)
        said = f"{SPACE}{said}" if before.endswith(SPACE) else said.lstrip()
        said, text = (f"{said}{SPACE}", text[1:]) if text.startswith(SPACE) else (said.rstrip(), text)
        before, said = before.removesuffix(SPACE), said.removeprefix(SPACE).removesuffix(SPACE)
        if tokenizer.spaces_lead:
            lead, before = before[len(before.rstrip(" ")) :], before.rstrip(" ")
        ids += tokenizer.encode_template(before)
        ids += tokenizer.encode(lead + said, start=tokenizer.starts_after(before))
    return ids + tokenizer.encode_template(text)
