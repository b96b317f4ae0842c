"""A small world for the command line: three tasks in two languages with reasoning, a tokenizer and a random Llama."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fiat_jax.cli import main

PLACES = {"en": ("hill", "lake", "town", "field"), "de": ("Berg", "See", "Stadt", "Feld")}
SKIES = {
    "en": {"good": ("sunny", "clear"), "bad": ("rainy", "grey")},
    "de": {"good": ("klar",), "bad": ("trüb", "nass")},
}
LARGE_MODEL = "Large"
# what `fiat train` and `fiat experiment` are told about the tiny model, for a minute's work
SETTINGS = (
    "--gin.Model.path=model",
    "--gin.Prompts.max_length=96",
    "--gin.Train.row_length=128",
    "--gin.Train.batch_rows=8",
    "--gin.Train.epochs=6",
    "--gin.Optimizer.learning_rate=1e-2",
    "--gin.Lora.rank=8",
)
IMPORT = ("--gin.Import.answer=large_answer", f"--gin.Import.model={LARGE_MODEL}")


@dataclass(frozen=True)
class World:
    """Where the tiny world lies: `data` has NAME.jsonl for each task, `model` the checkpoint."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def fiat(
        self, *arguments: object, status: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Run the command in a process of its own with one device; fail where the exit status is another one."""
        command = [sys.executable, "-m", "fiat_jax", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.root, env=self.env | (env or {}))
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def main(self, *arguments: object) -> int:
        """Run the command in this process, for verbs that compute nothing; return its exit status."""
        with contextlib.chdir(self.root):
            return main([str(argument) for argument in arguments])

    @property
    def env(self) -> dict[str, str]:
        """The environment of such processes."""
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # programs that run a few steps compile in half the time
        return os.environ | quick | {"XLA_FLAGS": " ".join(flags), "COLUMNS": "200"}


def make_world(root: Path) -> World:
    """Write it all."""
    world = World(root)
    world.data.mkdir(parents=True)
    tasks = {"weather": weather_rows(120), "riddle": riddle_rows(48), "sums": sums_rows(48)}
    for name, rows in tasks.items():
        write_rows(world.data / f"{name}.jsonl", rows)
    texts = [json.dumps(row, ensure_ascii=False) for rows in tasks.values() for row in rows]
    _write_model(world.model, _write_tokenizer(world.model, texts))
    return world


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def weather_rows(count: int) -> list[dict[str, Any]]:
    """A label task: is the weather good? The large model is right in four of five rows."""
    rng, rows = np.random.default_rng(0), []
    for n in range(count):
        lang, answer = ("en", "de")[n % 2], ("good", "bad")[n // 2 % 2]
        sky, place = rng.choice(SKIES[lang][answer]), rng.choice(PLACES[lang])
        large = answer if rng.random() < 0.8 else {"good": "bad", "bad": "good"}[answer]
        report = {"en": f"It is {sky} on {place} {n}!", "de": f"Es ist {sky}: {place} {n}!"}[lang]
        row = {"id": f"w{n}", "lang": lang, "report": report, "answer": answer}
        rows.append({**row, "reasoning": f"{sky} at {place}, no. {n}.", "large_answer": large})
    return rows


def riddle_rows(count: int) -> list[dict[str, Any]]:
    """A choice task: which of the words begins with the letter?"""
    rng, rows = np.random.default_rng(1), []
    for n in range(count):
        lang = ("en", "de")[n % 2]
        choices = [str(word) for word in rng.permutation(PLACES[lang])[:3]]
        answer = choices[rng.integers(3)]
        row = {"id": f"r{n}", "lang": lang, "question": f"{answer[0]}?", "choices": choices, "answer": answer}
        rows.append({**row, "reasoning": f"{answer} begins with it", "large_answer": answer})
    return rows


def sums_rows(count: int) -> list[dict[str, Any]]:
    """A number task."""
    rng, rows = np.random.default_rng(2), []
    for n in range(count):
        a, b = (int(number) for number in rng.integers(1, 10, 2))
        lang = ("en", "de")[n % 2]
        question = {"en": f"{a} plus {b}", "de": f"{a} und {b}"}[lang]
        row = {"id": f"s{n}", "lang": lang, "question": question, "answer": a + b}
        rows.append({**row, "reasoning": f"{a} + {b} is {a + b}", "large_answer": a + b})
    return rows


def byte_level(texts: list[str], vocab_size: int) -> Any:
    """Return a byte-level tokenizer (of `tokenizers`) of such texts, with <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def _write_tokenizer(directory: Path, texts: list[str]) -> int:
    """Write a byte-level tokenizer whose id 0 is the letter "!" and return its size."""
    backend = byte_level(texts, 320)
    assert backend.id_to_token(0) == "!"
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    return backend.get_vocab_size()


def _write_model(directory: Path, vocab_size: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(generator=generator, std=0.1)
    model.save_pretrained(directory)
