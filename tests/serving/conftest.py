"""A server in a process of its own: a tiny θ_β, and the pair of a trained θ_τ."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from safetensors.numpy import load_file, save_file
from support.server import SMALL, Server, serving
from support.world import World

SEVERAL_TURNS = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def pair(trained, tmp_path_factory) -> World:
    """The trained world with `large`, a θ_β that reads more and chats, and a bundle whose I_β asks for little."""
    root = trained.root
    if not (root / "large").exists():
        shutil.copytree(trained.model, root / "large")
        _amplify(root / "large" / "model.safetensors")
        config = json.loads((root / "large" / "config.json").read_text())
        (root / "large" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
        (root / "large" / "chat_template.jinja").write_text(SEVERAL_TURNS)
        shutil.copytree(root / "run" / "bundle", root / "pair")
        _replace(root / "pair" / "prompts.yaml", "max_tokens: 256", "max_tokens: 24")
    return trained


def _amplify(weights: Path) -> None:
    """Make a random model say many things: of such small weights it says one."""
    tensors = {name: tensor * (5 if tensor.ndim > 1 else 1) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})


def _replace(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


@pytest.fixture(scope="session")
def server(pair) -> Iterator[Server]:
    """One server for all that only ask."""
    options = ("--bundle=pair", "--gin.Native.path=large", *SMALL, "--gin.Serve.prefix_length=512")
    with serving(pair, *options, "--gin.Serve.max_length=512", "--gin.Serve.body_bytes=200000") as server:
        yield server


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return server.openai()


@pytest.fixture(scope="session")
def http(server) -> httpx.Client:
    return server.http()
