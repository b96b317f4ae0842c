"""Chat templates: what an instruction-tuned model's own template puts around what it is told and what it answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiat_jax.errors import UserError

# to a template that asks for the date: a prompt must not change overnight
TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
RENDERING = (
    "messages", "conversations", "chat_template", "add_generation_prompt", "continue_final_message",
    "return_assistant_tokens_mask", "tools", "documents",
)  # fmt: skip
USER, ANSWER = "⟦fiat: the user's words⟧", "⟦fiat: the answer⟧"  # stand-ins that no template writes by itself


@dataclass(frozen=True)
class Chat:
    """How an instruction file wants its text told: in a user's turn, after a system's where there is one.

    `variables` are handed to the template, such as `enable_thinking` of Qwen 3.
    """

    system: str = ""
    variables: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Turns:
    """The text of a chat template before the user's words, between them and the answer, and after the answer.

    `lead` is white space that the template puts before an answer that is there, and not where one is asked for. `begin`
    and `lead` also hold the spaces that a tokenizer whose words begin with their space takes into the first word.
    """

    opening: str
    between: str
    lead: str
    closing: str
    begin: str = ""


def read_template(root: Path, config: Mapping[str, Any]) -> str | None:
    """Return the chat template of a tokenizer's directory, the one called "default" where there are several."""
    file = root / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template, file = config.get("chat_template"), root / "chat_template.json"
    try:
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}.get("default")
        if template is None and file.is_file():
            return json.loads(file.read_text("utf-8"))["chat_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the chat template in {root} cannot be read ({error!r}); fetch it again") from None
    return template


def render_template(
    template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any], *, prompt: bool
) -> str:
    """Return what a template makes of messages; with `prompt` up to where the next answer begins.

    Raises:
        UserError: it does not take these messages.
    """
    # only whoever reads a chat template needs it
    from transformers.utils.chat_template_utils import render_jinja_template

    template = TODAY + template if "strftime_now" in template else template
    try:
        return render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=prompt,
            **variables,
        )[0][0]
    except Exception as error:  # whatever a template does wrong
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the chat template does not take the roles {roles} ({error})") from None


def turns(template: str, chat: Chat, special_tokens: Mapping[str, str], where: str) -> Turns:
    """Return what a template puts around one exchange.

    Raises:
        UserError: a template that lacks a role, fails, or changes the words it is given.
    """
    told = [{"role": "system", "content": chat.system}] if chat.system else []
    told.append({"role": "user", "content": USER})
    variables = {**special_tokens, **dict(chat.variables)}

    def rendered(messages: list[dict[str, str]], prompt: bool) -> str:
        try:
            return render_template(template, messages, variables, prompt=prompt)
        except UserError as error:
            raise UserError(
                f"{where}: {error}; leave `system` out of the instruction file, or give a model whose template has it"
            ) from None

    asked = rendered(told, prompt=True)
    answered = rendered([*told, {"role": "assistant", "content": ANSWER}], prompt=False)
    missing = ["user"] if asked.count(USER) != 1 else ["assistant"] if answered.count(ANSWER) != 1 else []
    if chat.system and chat.system.strip() not in asked:
        missing.append("system")
    if missing:
        raise UserError(
            f"the chat template of {where} does not show once what the role {missing[0]} says; it cannot be used"
        )
    opening, between = asked.split(USER, 1)
    before, closing = answered.split(ANSWER, 1)
    lead = before.removeprefix(asked)
    if rendered(told, prompt=False) == asked and before.startswith(asked):  # a template that knows no generation prompt
        between, lead = between + lead, ""
    return Turns(opening, between, lead if lead.isspace() else "", closing)
