"""The parts of an instruction file: fields, labels, I_β and I_τ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.prompts.chat import RENDERING, Chat
from fiat_jax.prompts.exemplars import ExemplarSets, RowsById, read_exemplars
from fiat_jax.prompts.extract import Extract, make_extract
from fiat_jax.prompts.fields import FIELD_KINDS, label_text
from fiat_jax.prompts.schema import Section
from fiat_jax.prompts.template import Template, parse_template

USES = {"full": ("rationale", "answer"), "answer": ("answer",), "rationale": ("rationale",), "none": ()}
RESERVED = ("rationale", "answer", "reasoning")
DECODING = {"temperature": 0.0, "max_tokens": 256}
DECODING_KINDS: dict[str, type] = {"temperature": float, "max_tokens": int, "top_p": float, "top_k": int}


@dataclass(frozen=True)
class ReasoningSide:
    """I_β. The file's `example` is cut at {rationale}: `request` is asked, `completion` is what exemplars add."""

    instructions: str
    request: Template
    completion: Template
    exemplars: ExemplarSets
    stop: tuple[str, ...]
    decoding: Mapping[str, Any]
    extract: Extract
    extract_settings: Mapping[str, Any]
    chat: Chat | None = None


@dataclass(frozen=True)
class AnswerSide:
    """I_τ. `template` ends before its last slot, {answer}; `reasoning` has what fills {reasoning}, by use of ŷ_β."""

    instructions: str
    template: Template
    reasoning: Mapping[str, Template]
    truncate: tuple[str, ...]
    chat: Chat | None = None


def read_fields(section: Section) -> dict[str, str]:
    fields = {str(name): section.text(name) for name in section.content}
    for name, kind in fields.items():
        if kind not in FIELD_KINDS:
            known = ", ".join(FIELD_KINDS)
            raise UserError(f"{section.where}: {name} is of unknown kind {kind!r}; kinds are {known}")
        if name in RESERVED or not name.isidentifier():
            raise UserError(f"{section.where}: a field cannot be called {name!r}; rename it in the data")
    return fields


def read_labels(file: Section) -> dict[str, str]:
    if not file.has("labels"):
        return {}
    section = file.section("labels")
    labels = {label_text(name): section.text(name) for name in section.content}
    if len(set(labels.values())) < len(labels) or "" in labels.values():
        raise UserError(f"{section.where}: every label needs words of its own, else their scores are the same")
    return labels


def read_reasoning(
    section: Section, fields: Mapping[str, str], labels: Mapping[str, str], rows_by_id: RowsById | None
) -> ReasoningSide:
    where = f"{section.where}.example"
    example = parse_template(section.text("example"), [*fields, "rationale", "answer"], where)
    if example.slots.count("rationale") != 1 or example.slots.count("answer") > 1:
        raise UserError(f"{where} needs {{rationale}} once, where the completion begins, and {{answer}} once at most")
    request, completion = example.cut("rationale")
    if "answer" in request.slots:
        raise UserError(f"{where} shows {{answer}} before {{rationale}}; the large model is asked up to {{rationale}}")
    side = ReasoningSide(
        instructions=section.text("instructions", "").strip("\n"),
        request=request,
        completion=completion,
        exemplars=read_exemplars(section, rows_by_id),
        stop=section.texts("stop"),
        decoding=_read_decoding(section),
        extract=make_extract(section.section("extract"), tuple(labels.values())),
        extract_settings=section.section("extract").content,
        chat=_read_chat(section),
    )
    section.done()
    return side


def _read_chat(section: Section) -> Chat | None:
    """Read `chat` (true, or the template's variables) and `system`."""
    variables, system = section.flag_or_mapping("chat"), section.text("system", "").strip("\n")
    if variables is None and system:
        raise UserError(f"{section.where}.system is told by a chat template alone; add `chat: true`")
    for name, value in (variables or {}).items():
        if name in RENDERING or not isinstance(value, str | int | float):
            raise UserError(f"{section.where}.chat: {name} must be a text, number or truth value of your own; quote it")
    return None if variables is None else Chat(system, tuple(sorted(variables.items())))


def _read_decoding(section: Section) -> dict[str, Any]:
    if not section.has("decoding"):
        return dict(DECODING)
    decoding = section.section("decoding")
    read = {}
    for key, value in decoding.content.items():
        if key not in DECODING_KINDS:
            known = ", ".join(DECODING_KINDS)
            hint = did_you_mean(str(key), DECODING_KINDS)
            raise UserError(f"{decoding.where}: unknown setting {key!r}; settings are {known}.{hint}")
        kind = DECODING_KINDS[key]
        if isinstance(value, bool) or not isinstance(value, int | kind) or value < 0:
            raise UserError(
                f"{decoding.where}: {key} is {value!r}; it must be a number of kind {kind.__name__}, 0 or more"
            )
        read[key] = kind(value)
    return DECODING | read


def read_answer(section: Section, fields: Mapping[str, str]) -> AnswerSide:
    where = f"{section.where}.template"
    template = parse_template(section.text("template"), [*fields, "reasoning", "answer"], where)
    if template.slots.count("answer") != 1 or template.parts[-1].slot != "answer":
        raise UserError(f"{where} must end with {{answer}}, once: it is what the tuned model writes")
    if len(template.parts) < 2 or template.parts[-2].slot is not None:
        raise UserError(f"{where}: put a space, a line break or words between {{answer}} and what precedes it")
    if template.slots.count("reasoning") > 1:
        raise UserError(f"{where} shows {{reasoning}} more than once")
    side = AnswerSide(
        instructions=section.text("instructions", "").strip("\n"),
        template=template.cut("answer")[0],
        reasoning=_read_variants(section),
        truncate=tuple(name.removeprefix("field:") for name in section.texts("truncate")),
        chat=_read_chat(section),
    )
    if ("reasoning" in template.slots) != bool(side.reasoning):
        raise UserError(
            f"{where} shows {{reasoning}} exactly where {section.where}.reasoning says how; give both or none"
        )
    for name in side.truncate:
        if name not in template.slots or name == "answer":
            known = ", ".join(slot for slot in template.slots if slot != "answer")
            hint = did_you_mean(name, template.slots)
            raise UserError(f"{section.where}.truncate names {name!r}; what can be cut is {known}.{hint}")
    section.done()
    return side


def _read_variants(section: Section) -> dict[str, Template]:
    if not section.has("reasoning"):
        return {}
    variants = section.section("reasoning")
    templates = {
        use: parse_template(variants.text(use, "" if use == "none" else None), USES[use], f"{variants.where}.{use}")
        for use in USES
    }
    variants.done()
    for use, template in templates.items():
        if missing := set(USES[use]) - set(template.slots):
            raise UserError(
                f"{variants.where}.{use} must show {' and '.join(f'{{{slot}}}' for slot in sorted(missing))}"
            )
    return templates
