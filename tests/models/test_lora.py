"""Which layers an adapter takes: peft's rules, compared with peft's own functions."""

import re
from types import SimpleNamespace

import pytest

from fiat_jax.errors import UserError
from fiat_jax.models.decoder_families import LLAMA
from fiat_jax.models.lora import LoraConfig, resolve

TARGETS = [
    "all-linear",
    "All-Linear",
    ("q_proj",),
    ("q_proj", "v_proj"),
    ["gate_proj", "up_proj", "down_proj"],
    ("self_attn.o_proj",),
    ("0.self_attn.q_proj",),
    ("model.layers.2.mlp.down_proj", "k_proj"),
    r".*\.q_proj",
    r".*\.(q|k|v)_proj",
    r"model\.layers\.[01]\..*",
    r".*layers\.(1|2)\.mlp\.(gate|up)_proj",
    r"model.layers.0.self_attn.q_proj",
    ("embed_tokens", "q_proj"),
    r".*(embed_tokens|v_proj)",
]
EMBEDDING = "model.embed_tokens"
PATTERNS = [
    {},
    {"q_proj": 2},
    {"layers.0.self_attn.q_proj": 2, "q_proj": 3, "v_proj": 5},
    {"q_proj": 3, "layers.0.self_attn.q_proj": 2},
    {r"layers\.[12]\..*": 7},
    {r"model\.layers\.0\.mlp\..*_proj": 6, "down_proj": 9},
    {r"self_attn\..*": 5, r"(gate|up)_proj": 11},
]


@pytest.fixture(scope="module")
def modules(tiny):
    return LLAMA.modules(tiny)


@pytest.fixture(scope="module")
def paths(modules):
    return [path for stack in modules.values() for path in stack]


def by_path(config, modules):
    """Path → (rank, scale) of the layers that carry an adapter."""
    slots = resolve(config, modules)
    return {
        path: (rank, scale)
        for name, slot in slots
        for path, rank, scale in zip(modules[name], slot.ranks, slot.scales, strict=True)
        if rank
    }


@pytest.mark.parametrize("targets", [t for t in TARGETS if str(t).lower() != "all-linear"], ids=str)
def test_targets_match_what_peft_matches(targets, modules, paths):
    from peft.tuners.tuners_utils import check_target_module_exists

    theirs = SimpleNamespace(target_modules=targets if isinstance(targets, str) else set(targets))
    expected = {path for path in paths if check_target_module_exists(theirs, path)}
    assert 0 < len(expected) < len(paths)
    assert by_path(LoraConfig(targets=targets), modules).keys() == expected


@pytest.mark.parametrize("spelling", ["all-linear", "All-Linear"])
def test_all_linear_takes_every_linear_layer_but_the_head(spelling, modules, paths):
    assert by_path(LoraConfig(targets=spelling), modules).keys() == set(paths) - {EMBEDDING}


def test_the_embedding_is_adapted_where_it_is_named(modules):
    assert by_path(LoraConfig(targets=("embed_tokens", "q_proj")), modules).keys() >= {EMBEDDING}
    assert by_path(LoraConfig(targets=r"model\.embed_tokens"), modules) == {EMBEDDING: (16, 2.0)}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_give_the_ranks_and_alphas_that_peft_gives(pattern, modules, paths):
    from peft.utils.other import get_pattern_key

    every = tuple(paths)
    ranks = by_path(LoraConfig(rank=4, alpha=8, targets=every, rank_pattern=pattern), modules)
    alphas = by_path(LoraConfig(rank=4, alpha=8, targets=every, alpha_pattern=pattern), modules)
    for path in paths:
        override = pattern.get(get_pattern_key(pattern.keys(), path))
        assert ranks[path] == (override or 4, 8 / (override or 4))
        assert alphas[path] == (4, (override or 8) / 4)


def test_scales_are_alpha_over_rank_or_over_its_root(modules):
    pattern = {"q_proj": 16}
    plain = by_path(LoraConfig(rank=4, alpha=8, rank_pattern=pattern), modules)
    stable = by_path(LoraConfig(rank=4, alpha=8, rank_pattern=pattern, rslora=True), modules)
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    assert (plain[q], plain[k]) == ((16, 8 / 16), (4, 8 / 4))
    assert (stable[q], stable[k]) == ((16, 8 / 4), (4, 8 / 2))


def test_stacks_without_a_target_have_no_slot_and_layers_without_one_have_rank_zero(modules):
    slots = dict(resolve(LoraConfig(rank=4, targets=("1.self_attn.q_proj", "up_proj"), dropout=0.1), modules))
    assert slots.keys() == {"blocks.q", "blocks.up"}
    assert slots["blocks.q"].ranks == (0, 4, 0)
    assert slots["blocks.q"].scales == (0.0, 8.0, 0.0)
    assert slots["blocks.up"].ranks == (4, 4, 4)
    assert {slot.dropout for slot in slots.values()} == {0.1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"targets": ("q_prj", "v_proj")},
            "targets ('q_prj',) match no layer; layers are embed_tokens, q_proj, k_proj, ",
        ),
        ({"targets": ("q_prj",)}, "Did you mean 'q_proj'?"),
        ({"targets": r".*\.qproj"}, r"targets ('.*\\.qproj',) match no layer"),
        ({"targets": "q_proj"}, "A string is a regular expression for a layer's whole path; put names in a list."),
        ({"targets": ()}, "no targets"),
        ({"targets": ("all-linear",)}, "targets ('all-linear',) match no layer"),
        ({"targets": ("lm_head",)}, "targets ('lm_head',) match no layer"),
        ({"targets": r".*\.(q_proj"}, r"'.*\\.(q_proj' is not a regular expression"),
        ({"rank_pattern": {"q_prj": 3}}, "rank_pattern ('q_prj',) match no layer"),
        ({"alpha_pattern": {"up_proj": 3, "dwn_proj": 3}}, "Did you mean 'down_proj'?"),
        ({"rank_pattern": {"(": 3}}, "'(' is not a regular expression"),
        ({"rank": 0}, "positive whole number; got [0]"),
        ({"rank": 2.5}, "positive whole number"),
        ({"rank_pattern": {"q_proj": -1}}, "positive whole number"),
        ({"dropout": 1.0}, "at least 0 and less than 1; got 1.0"),
    ],
)
def test_a_configuration_that_cannot_be_followed_says_why(options, said, modules):
    with pytest.raises(UserError, match=re.escape(said)):
        resolve(LoraConfig(**options), modules)
