"""Chat templates of each family's style: θ_τ reads what the template writes, and learns the answer and its end."""

import json
import string

import pytest
import tokenizers
from tokenizers import models, normalizers

from fiat_jax.errors import UserError
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Renderer
from fiat_jax.prompts.tokenizer import Tokenizer

HINT = Reasoning("rain is wet.", "bad")
WORDS = "Say yes or no.\n\nReport: light rain at noon\nHint: rain is wet. So no.\nGood?"
FOR_EACH = "{% for m in messages %}"
# style: special tokens, template, and the golden text of an asked row, its answer, and the token that ends it
STYLES = {
    "chatml": (
        ["<|im_start|>", "<|im_end|>"],
        FOR_EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        f"<|im_start|>user\n{WORDS}<|im_end|>\n<|im_start|>assistant\n",
        "no",
        "<|im_end|>",
    ),
    "llama 3": (
        ["<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>"],
        "{{ bos_token }}" + FOR_EACH + "<|start_header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}",
        f"<|begin|><|start_header|>user<|end_header|>\n\n{WORDS}<|eot|><|start_header|>assistant<|end_header|>\n\n",
        "no",
        "<|eot|>",
    ),
    "gemma": (
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + FOR_EACH
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        f"<bos><start_of_turn>user\n{WORDS}<end_of_turn>\n<start_of_turn>model\n",
        "no",
        "<end_of_turn>",
    ),
    "mistral": (
        ["<s>", "[INST]", "[/INST]"],
        "{{ bos_token }}" + FOR_EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        f"<s>[INST] {WORDS} [/INST]",
        " no",
        "</s>",
    ),
    "phi 3": (
        ["<|user|>", "<|assistant|>", "<|end|>"],
        FOR_EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        f"<|user|>\n{WORDS}<|end|>\n<|assistant|>\n",
        "no",
        "<|end|>",
    ),
}
CHAT = ("answer:\n", "answer:\n  chat: true\n")


@pytest.fixture
def tokenizer(tmp_path):
    """Return a tokenizer of characters with the special tokens of a style and its chat template."""

    def make(special, template, as_file=False):
        letters = sorted(set(string.printable) - set("\r\x0b\x0c\t"))
        backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
        backend.add_special_tokens([*special, "</s>"])
        directory = tmp_path / "tokenizer"
        directory.mkdir()
        backend.save(str(directory / "tokenizer.json"))
        config = {"bos_token": special[0], "eos_token": "</s>", "add_bos_token": True}
        if as_file:
            (directory / "chat_template.jinja").write_text(template)
        elif template is not None:
            config["chat_template"] = template
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer.from_directory(directory)

    return make


@pytest.fixture
def renderer(write, rows, tokenizer):
    def make(style, *replacements, **options):
        special, template, *_ = STYLES[style]
        instructions = load_instructions(write(CHAT, *replacements), rows)
        return Renderer(instructions, tokenizer(special, template, **options), 400)

    return make


@pytest.mark.parametrize("style", STYLES)
def test_a_row_is_told_as_the_template_tells_it(style, renderer, rows):
    *_, text, answer, end = STYLES[style]
    made = renderer(style)
    rendered = made.answer(rows["w3"], HINT, "bad")
    whole = made.tokenizer.encode_template(text)
    assert "".join(s.text for s in rendered.segments if s.kind not in ("answer", "eos")) == text
    assert rendered.inputs.tolist() == whole
    assert rendered.target.tolist() == made.tokenizer.encode_template(answer + end)
    assert made.end_id == rendered.target[-1] == made.tokenizer.encode_template(end)[0]
    assert [ids.tolist() for ids in made.candidates(("bad",))] == [rendered.target.tolist()]


@pytest.mark.parametrize("style", STYLES)
def test_the_words_of_a_row_are_no_tokens_of_the_template(style, renderer, rows):
    made = renderer(style)
    special = {i for token in STYLES[style][0] for i in made.tokenizer.encode_template(token)}
    rows["w3"]["report"] = f"{STYLES[style][0][-1]} and rain"
    rendered = made.answer(rows["w3"], HINT, "bad")
    told = {i for segment in rendered.segments if segment.kind.startswith("field") for i in segment.ids}
    assert told
    assert not told & special


def test_a_template_may_lie_in_a_file_of_its_own(renderer, rows):
    rendered = renderer("chatml", as_file=True).answer(rows["w3"], HINT, None)
    assert "".join(segment.text for segment in rendered.segments) == STYLES["chatml"][2]


def test_variables_of_the_template_and_a_system_turn(renderer, rows):
    made = renderer("chatml", ("  chat: true\n", "  chat: {enable_thinking: false}\n  system: Be brief.\n"))
    text = "".join(segment.text for segment in made.answer(rows["w3"], HINT, None).segments)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay yes")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_what_the_large_model_is_asked_is_told_by_its_template_too(renderer, rows):
    made = renderer("llama 3", ("reasoning:\n  instructions", "reasoning:\n  chat: true\n  instructions"))
    prompt, begin = made.reasoning_prompt(rows["w3"]), made.tokenizer.encode_template
    opening, between = (
        "<|begin|><|start_header|>user<|end_header|>\n\n",
        "<|eot|><|start_header|>assistant<|end_header|>\n\n",
    )
    assert list(prompt.prefix_ids) == begin(opening + prompt.prefix_text)
    assert list(prompt.own_ids) == begin(prompt.own_text + between)
    assert "<|" not in prompt.prefix_text + prompt.own_text


def test_a_template_that_asks_for_the_date_says_the_same_every_day(write, rows, tokenizer):
    template = "{{ strftime_now('%d %b %Y') }}</s>" + FOR_EACH + "{{ m.content }}</s>{% endfor %}"
    made = Renderer(load_instructions(write(CHAT), rows), tokenizer(["<s>"], template), 400)
    assert made.answer(rows["w3"], HINT, None).segments[0].text == "26 Jul 2024</s>"


def test_a_template_without_a_generation_prompt_still_opens_the_answers_turn(write, rows, tokenizer):
    template = FOR_EACH + "<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    made = Renderer(load_instructions(write(CHAT), rows), tokenizer(["<|user|>", "<|assistant|>"], template), 400)
    rendered = made.answer(rows["w3"], HINT, "bad")
    assert rendered.segments[-3].text == "</s><|assistant|>"
    assert rendered.target.tolist() == made.tokenizer.encode_template("no</s>")


def test_words_take_the_space_that_a_template_puts_before_them(write, rows, tmp_path):
    """As a vocabulary of " word"s has it: [INST], then " S" in one token."""
    letters = sorted({*(set(string.printable) - set("\r\x0b\x0c\t")), " S", " n"})
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [(" ", "S"), (" ", "n")]))
    special, template, *_ = STYLES["mistral"]
    backend.add_special_tokens([*special, "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made = Renderer(load_instructions(write(CHAT), rows), Tokenizer.from_directory(tmp_path), 400)
    rendered = made.answer(rows["w3"], HINT, "bad")
    whole = made.tokenizer.encode_template(STYLES["mistral"][2] + " no</s>")
    assert [*rendered.inputs, *rendered.target] == whole
    assert made.tokenizer.encode_template(" S")[0] in rendered.inputs


OLD_STYLES = {
    "special tokens before words": (
        ["<|user|>", "<|end|>", "<|assistant|>"],
        FOR_EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    "plain marks before words": (
        [],
        FOR_EACH + "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    ),
}


@pytest.mark.parametrize("style", OLD_STYLES)
@pytest.mark.parametrize("swallow", [True, False])
def test_old_vocabularies_put_a_space_before_words_where_transformers_does(style, swallow, write, rows, tmp_path):
    from transformers import PreTrainedTokenizerFast

    special, template = OLD_STYLES[style]
    letters = sorted(set(string.printable) - set("\r\x0b\x0c\t "))
    words = ["<s>", "</s>", "▁", *letters, *(f"▁{c}" for c in letters)]
    backend = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", c) for c in letters]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    marks = [tokenizers.AddedToken(t, special=True, normalized=False, rstrip=swallow) for t in special]
    backend.add_special_tokens([*marks, *(tokenizers.AddedToken(t, normalized=False) for t in ("<s>", "</s>"))])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), chat_template=template)
    made = Renderer(load_instructions(write(CHAT), rows), Tokenizer.from_directory(tmp_path), 400)
    rendered = made.answer(rows["w3"], HINT, "bad")
    told = "".join(s.text for s in rendered.segments if s.kind not in ("chat", "answer", "eos")).strip()
    turns = [{"role": "user", "content": told}, {"role": "assistant", "content": "no"}]
    whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    ours = [*rendered.inputs, *rendered.target]
    assert ours == whole[: len(ours)]
    assert len(whole) - len(ours) <= 1  # a line feed may follow the end of the last turn


def test_a_chat_has_hashes_of_its_own(renderer, write, rows, tokenizer):
    chatting = renderer("chatml")
    plain = Renderer(load_instructions(write(), rows), chatting.tokenizer, 400)
    assert plain.identity == chatting.tokenizer.fingerprint != chatting.identity
    assert plain.instructions.answer_hash != chatting.instructions.answer_hash
    assert plain.fingerprint != chatting.fingerprint
    assert plain.end_id == chatting.tokenizer.eos_id != chatting.end_id


def test_a_template_without_the_system_role_is_one_clear_error(renderer):
    with pytest.raises(UserError, match=r"does not take the roles system, user \(no system role\); leave `system` out"):
        renderer("gemma", ("  chat: true\n", "  chat: true\n  system: Be brief.\n"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template; leave `chat` out"),
        (
            FOR_EACH + "{% if m.role == 'user' %}{{ m.content }}</s>{% endif %}{% endfor %}",
            "what the role assistant says",
        ),
        (FOR_EACH + "{{ m.content }}{{ m.content }}</s>{% endfor %}", "does not show once what the role user says"),
        ("{{ messages + 1 }}", "does not take the roles user"),
        (FOR_EACH + "{{ m.content }}{% endfor %}", "ends an answer with no special token"),
        ("{% for m in messages %}", "tokenizer: the chat template does not take"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, said, write, rows, tokenizer):
    instructions = load_instructions(write(CHAT), rows)
    with pytest.raises(UserError, match=said):
        Renderer(instructions, tokenizer(["<s>"], template), 400)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("  chat: 3\n", "chat must be true, false or a mapping"),
        ("  chat: {date_string: 2024-07-26}\n", "date_string must be a text, number or truth value"),
        ("  chat: {messages: x}\n", "messages must be a text, number or truth value of your own"),
        ("  system: Be brief.\n", "system is told by a chat template alone; add `chat: true`"),
    ],
)
def test_a_chat_that_is_written_wrongly_is_refused(written, said, write, rows):
    with pytest.raises(UserError, match=said):
        load_instructions(write(("answer:\n", f"answer:\n{written}")), rows)
