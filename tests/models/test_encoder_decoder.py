"""T5 and its descendants against transformers; packing, generation, adapters and meshes of an encoder-decoder."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support.texts import engine_texts

from fiat_jax.data.batches import ScoringBatches, TrainBatches
from fiat_jax.data.examples import Example, Examples
from fiat_jax.data.layout import EncoderDecoderLayout
from fiat_jax.errors import UserError
from fiat_jax.models.checkpoints import write_model
from fiat_jax.models.encoder_decoder import bucket_table
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import ModelConfig, load_model, logits, merge, their_tensors, with_weights
from fiat_jax.models.peft import load_adapter, read_lora_config, save_adapter

LAYOUT = functools.partial(EncoderDecoderLayout, start_id=0)
# name → architecture and options; the length of texts passes max_distance
CASES = {
    "t5": ("T5ForConditionalGeneration", {"feed_forward_proj": "relu"}),
    "t5 1.1": ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5, stacks of two depths": ("T5ForConditionalGeneration", {"num_decoder_layers": 3, "num_layers": 1}),
    "mt5": ("MT5ForConditionalGeneration", {}),
    "mt5, its head tied": ("MT5ForConditionalGeneration", {"head": False}),
}


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Write a random T5 with transformers, its head its own where the case says so."""

    def write(architecture, options, directory=None):
        import torch
        import transformers

        sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 3}
        sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
        sizes |= {"decoder_start_token_id": 0}
        own_head = options.get("head", architecture.startswith("M") or options.get("tie_word_embeddings") is False)
        model_class = getattr(transformers, architecture)
        options = {name: value for name, value in options.items() if name != "head"}
        model = model_class(model_class.config_class(**(sizes | options)))
        if own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.shared.weight))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator, std=0.3)
            if parameter.ndim == 1:
                parameter.data += 1
        directory = directory or tmp_path_factory.mktemp("t5")
        model.save_pretrained(directory)
        return directory

    return write


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request, write):
    return write(*CASES[request.param])


@pytest.fixture(scope="module")
def one(write):
    return write(*CASES["t5 1.1"])


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(2, 40, (2, 33)).astype(np.int32)


def theirs(directory, tokens_BT, adapter=None):
    """The logits that transformers gives to a text written again behind the start token."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    read = torch.tensor(tokens_BT)
    written = torch.cat([torch.zeros_like(read[:, :1]), read[:, :-1]], 1)
    with torch.no_grad():
        return model(input_ids=read, decoder_input_ids=written).logits.numpy()


def load(directory, mesh, **options):
    return load_model(ModelConfig(str(directory)), mesh, **options)


def test_logits_equal_those_of_transformers(checkpoint, one_device, tokens):
    np.testing.assert_allclose(logits(load(checkpoint, one_device), tokens), theirs(checkpoint, tokens), atol=1e-4)


@pytest.mark.parametrize(
    "off",
    [
        {"head_scale": 1.0},
        {"activation": "gelu_tanh"},
        {"max_distance": 12},
        {"norm_eps": 1.0},
    ],
)
def test_every_option_matters(write, one_device, tokens, off):
    model = load(write(*CASES["t5"]), one_device)
    build = dataclasses.replace(model.config, **off)
    switched = nnx.eval_shape(
        lambda: type(model.module(model.trainable, model.frozen))(build, model.build, nnx.Rngs(0))
    )
    other = dataclasses.replace(model, config=build, graphdef=nnx.split(switched, nnx.Param, ...)[0])
    assert np.abs(np.asarray(logits(other, tokens)) - np.asarray(logits(model, tokens))).max() > 1e-2


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (64, 256), (16, 100)])
def test_buckets_are_those_of_transformers(bidirectional, buckets, distance):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-distance, distance + 1)
    expected = T5Attention._relative_position_bucket(offsets, bidirectional, buckets, distance)
    assert bucket_table(buckets, distance, bidirectional=bidirectional).tolist() == expected.tolist()


def test_greedy_text_is_that_of_transformers_whatever_shares_the_batch(checkpoint, one_device):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    reference = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [np.random.default_rng(i).integers(2, 40, n).astype(np.int32) for i, n in enumerate((25, 3, 33))]
    ours = engine_texts(load(checkpoint, one_device), prompts, 12)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = torch.tensor(prompt[None])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "decoder_start_token_id": 0}
        options |= {"use_cache": False}  # theirs has as many layers as the encoder
        assert text == reference.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 1:].tolist()


def some_examples(lengths=(25, 9, 14)):
    rng = np.random.default_rng(0)
    parts = [np.split(rng.integers(2, 40, n).astype(np.int32), [n - 3]) for n in lengths]
    return [Example(str(i), "en", *part) for i, part in enumerate(parts)]


def test_packed_rows_give_the_loss_of_transformers_on_each_row_alone(one, one_device):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    reference, examples = AutoModelForSeq2SeqLM.from_pretrained(one, dtype=torch.float32).eval(), some_examples()
    batch = TrainBatches(Examples.of(examples), 48, 1, 0, LAYOUT).batch(0)
    assert len(np.unique(batch["segments"])) == 4
    model = load(one, one_device)
    loss = float(jax.jit(model.loss)(model.trainable, model.frozen, batch))
    expected = 0.0
    for example in examples:
        with torch.no_grad():
            labels = torch.tensor(example.target[None]).long()
            expected += float(reference(input_ids=torch.tensor(example.inputs[None]), labels=labels).loss) * 3
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_candidates_that_share_what_was_read_score_as_each_alone(one, one_device):
    model, examples = load(one, one_device), Examples.of(some_examples((20, 12)))
    rng = np.random.default_rng(1)
    candidates = [[rng.integers(2, 40, n).astype(np.int32) for n in (1, 4, 2)] for _ in range(2)]
    log_probs = jax.jit(functools.partial(model.log_probs, model.trainable, model.frozen))

    def scores(chosen):
        batches = ScoringBatches(examples, chosen, 40, 1, LAYOUT)
        return batches.gather([np.asarray(log_probs(batch)) for batch in batches])

    together = scores(candidates)
    for c in range(3):
        alone = scores([[answers[c]] for answers in candidates])
        np.testing.assert_allclose([one[0] for one in alone], [all_[c] for all_ in together], rtol=1e-5)


def by_peft(directory, target, **options):
    import peft
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator, std=0.2)
    model.save_pretrained(target)
    return target


def test_adapters_of_peft_come_in_and_go_out_and_merge(checkpoint, one_device, tokens, tmp_path):
    adapter = by_peft(checkpoint, tmp_path / "theirs", r=3, lora_alpha=5, target_modules="all-linear")
    plain = load(checkpoint, one_device)
    lora = read_lora_config(adapter, plain.family, plain.config)
    model = load(checkpoint, one_device, lora=lora)
    model = dataclasses.replace(model, trainable=load_adapter(model, adapter))
    ours = load(checkpoint, one_device, lora=LoraConfig(rank=3))
    assert {name for name, _ in ours.build.slots} == {name for name, _ in model.build.slots}
    expected = theirs(checkpoint, tokens, adapter)
    assert np.abs(expected - np.asarray(logits(plain, tokens))).max() > 0.1
    np.testing.assert_allclose(logits(model, tokens), expected, atol=2e-4)
    save_adapter(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    np.testing.assert_allclose(theirs(checkpoint, tokens, tmp_path / "ours"), expected, atol=1e-5)
    merged = with_weights(model, merge(model))
    write_model(tmp_path / "merged", their_tensors(merged, merged.weights(), "float32"), model.hf_config, checkpoint)
    np.testing.assert_allclose(theirs(tmp_path / "merged", tokens), expected, atol=2e-4)


def test_a_target_may_be_in_one_stack_alone(one, one_device):
    model = load(one, one_device, lora=LoraConfig(rank=2, targets=r"decoder\..*EncDecAttention\.(q|v)"))
    assert [name for name, _ in model.build.slots] == ["decoder.cross_q", "decoder.cross_v"]


@pytest.mark.parametrize("lora", [LoraConfig(rank=2), None])
def test_on_eight_devices_the_loss_and_its_gradients_are_those_of_one(one, one_device, eight_devices, filled, lora):
    batch, found = TrainBatches(Examples.of(some_examples((15,) * 8)), 16, 8, 0, LAYOUT).batch(0), []
    for mesh in (one_device, eight_devices):
        with jax.set_mesh(mesh):
            model = load(one, mesh, lora=lora)
            model = filled(model) if lora else model
            loss, grads = jax.jit(jax.value_and_grad(model.loss))(model.trainable, model.frozen, batch)
        found.append((float(loss), jax.tree.map(np.asarray, grads)))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, atol=1e-3 * np.abs(one).max()), *found)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_a_file_may_repeat_the_table_but_not_contradict_it(one, one_device, write, tmp_path, tokens, name):
    directory = write(*CASES["t5 1.1"], tmp_path / "copy")
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {name: tensors["shared.weight"]}, directory / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(logits(load(directory, one_device), tokens), logits(load(one, one_device), tokens))
    save_file(tensors | {name: tensors["lm_head.weight"]}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"ties {name} to shared.weight"):
        load(directory, one_device)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish'; we read [gated-]silu"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder False"),
        ({"d_kv": None}, "lacks 'd_kv'"),
        ({"num_heads": 5}, "EncDecAttention.q.weight is (24, 16), config.json says (40, 16)"),
    ],
)
def test_a_config_that_cannot_be_right_is_one_error(write, one_device, tmp_path, changes, said):
    directory = write(*CASES["t5 1.1"], tmp_path / "damaged")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as error:
        load(directory, one_device)
    assert said in str(error.value)
