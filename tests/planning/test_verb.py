"""`fiat plan` from its command line to results.json, for the devices at hand and for a slice that is not there."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fiat_jax.cli import main
from fiat_jax.errors import UserError
from fiat_jax.inference.config import EngineConfig
from fiat_jax.planning import target
from fiat_jax.planning.target import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/results-format.md").read_text(encoding="utf-8")
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
TRAIN = ("--gin.Train.batch_rows=8", "--gin.Train.row_length=256", "--gin.Plan.input_tokens=100")
WRITE = (
    *("--gin.Native.slots=8", "--gin.Native.dtype=float32", "--gin.Plan.prefix_tokens=512"),
    *("--gin.Plan.prompt_tokens=16", "--gin.Plan.new_tokens=16", "--gin.Mesh.tensor=2", "--gin.Mesh.fsdp=2"),
)
without_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu to compile for TPUs with: pip install -e '.[plan]'"
)


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    path = tmp_path_factory.mktemp("shape")
    (path / "config.json").write_text(json.dumps(SHAPE))
    return path


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


def fields(begin: str, end: str | None) -> set[str]:
    """Return what the first column of a table of the page names."""
    text = PAGE[PAGE.index(begin) : None if end is None else PAGE.index(end)]
    lines = re.findall(r"^\|(.+?)\|", text, flags=re.MULTILINE)
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line)}


def test_a_plan_for_the_devices_at_hand_is_printed_and_written(shape, tmp_path, capsys):
    work = tmp_path / "plan"
    settings = (f"--gin.Model.path={shape}", *TRAIN, "--gin.Mesh.tensor=2", "--gin.Mesh.fsdp=2")
    assert main(["plan", *settings, f"--workdir={work}"]) == 0
    told, plan = capsys.readouterr().out, results(work)["details"]["plan"]
    assert "fits:" in told
    assert "no published peaks" in told
    assert told.splitlines()[-1] == f"results: {work}/results.json"
    assert "Plan.input_tokens = 100" in (work / "config.gin").read_text()
    assert plan["target"]["mesh"] == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert set(plan) == fields("`details.plan` of `fiat plan`", "A program of a plan") - {
        "kept_besides",
        "rows_per_hour",
    }
    step = plan["programs"]["step"]
    assert set(step) == fields("A program of a plan", "A collective of a program") - {"roofline"}
    assert {frozenset(one) for one in step["collectives"]} == {frozenset(fields("A collective of a program", None))}
    assert plan["fits"] is True
    assert plan["mfu"] is None


def test_an_engine_is_planned_program_by_program(shape, tmp_path, capsys):
    assert main(["plan", f"--gin.Native.path={shape}", *WRITE, f"--workdir={tmp_path}"]) == 0
    plan = results(tmp_path)["details"]["plan"]
    buckets = EngineConfig(slot_length=32, shortest_bucket=16).buckets
    assert set(plan["programs"]) == {"read_prefix", "decode", *(f"admit_{n}" for n in buckets)}
    decode = plan["programs"]["decode"]
    assert decode["assumed_loops"]["jit(decode)/while"] == 16  # tokens of a call; what is told is the share of one
    prefix = [trips for name, trips in decode["assumed_loops"].items() if name.endswith("prefix_blocks/while")]
    assert prefix == [1]  # 512 keys are one block
    assert decode["loops_counted_once"] == []
    assert not any("for every token" in line for line in decode["cautions"])  # too little to be told of
    needed = plan["useful_flops"] / 8
    assert 0.9 < decode["flops"] / needed < 2.1
    assert (
        plan["kept_besides"] == 2 * 2 * 1 * 512 * 128 * 4
    )  # keys and values, layers, heads here, places, width, bytes
    assert "assumed: jit(decode)/while runs 16 times" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [(), ("--gin.Model.path=a", "--gin.Native.path=b")], ids=["none", "both"])
def test_it_must_be_clear_what_is_planned(settings, tmp_path, capsys):
    assert main(["plan", *settings, f"--workdir={tmp_path / 'no'}"]) == 2
    assert "--gin.Model.path=DIRECTORY to plan its training" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def elsewhere(*arguments: str) -> subprocess.CompletedProcess:
    """Run the verb in a process of its own: libtpu wants an environment that JAX has not started in."""
    env = {**os.environ, **ENVIRONMENT, "COLUMNS": "200"}
    command = [sys.executable, "-m", "fiat_jax", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)


def by_hand(rows: int, length: int, targets: int) -> float:
    """Return the operations of a step on a chip that has so many rows, of the two layers of `SHAPE`."""
    frozen = 2 * (2 * 256 * 512 + 2 * 256 * 256 + 3 * 256 * 512)  # q and o, k and v, the gated MLP
    adapters = 2 * 16 * (2 * (256 + 512) + 2 * (256 + 256) + 3 * (256 + 512))
    products = 2 + 3 + 4  # of splash attention: forward, and the gradients of queries and of keys and values
    attention = 2 * products * 2 * length**2 * 4 * 128  # a row is one block
    return rows * (length * (4 * frozen + 6 * adapters) + attention + 4 * targets * 512 * 256)


@without_libtpu
def test_a_slice_that_is_not_there_is_planned_for(shape, tmp_path):
    settings = (f"--gin.Model.path={shape}", "--gin.Model.dtype=bfloat16", *TRAIN, "--gin.Mesh.fsdp=4")
    done = elsewhere(*settings, "--topology=v5e:2x2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    plan = results(tmp_path)["details"]["plan"]
    assert (plan["target"]["device_kind"], plan["target"]["memory"]) == ("TPU v5 lite", int(15.75 * 2**30))
    step = plan["programs"]["step"]
    assert step["loops_counted_once"] == []
    assert (plan["attention"], step["kernels"], step["calls_not_counted"]) == ("splash", ["a Pallas kernel"], [])
    assert step["flops"] == pytest.approx(by_hand(rows=2, length=256, targets=40), rel=0.04)
    assert {tuple(one["axes"]) for one in step["collectives"]} == {("fsdp",)}
    line = step["roofline"]
    assert line["compute"] == pytest.approx(step["flops"] / 197e12)
    assert line["seconds"] == max(line["compute"], line["memory"], line["network"])
    assert plan["tokens_per_second"] == pytest.approx(plan["tokens"] / line["seconds"])
    assert "MFU" in done.stdout


@pytest.mark.slow
@without_libtpu
def test_decoding_reads_its_weights_and_every_slots_keys_and_values_once_a_token(tmp_path):
    layers, width, mlp, heads, keys, head, vocabulary, slots, prefix = 8, 1024, 4096, 8, 2, 128, 8192, 64, 512
    large = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, **large, "num_attention_heads": heads}))
    settings = (
        *(f"--gin.Native.path={tmp_path}", "--gin.Native.dtype=bfloat16", f"--gin.Native.slots={slots}"),
        *(f"--gin.Plan.prefix_tokens={prefix}", "--gin.Plan.prompt_tokens=256", "--gin.Plan.new_tokens=256"),
        *("--gin.Mesh.data=2", "--gin.Mesh.tensor=2", "--topology=v5e:2x2", f"--workdir={tmp_path / 'plan'}"),
    )
    done = elsewhere(*settings)
    assert done.returncode == 0, done.stderr
    plan = results(tmp_path / "plan")["details"]["plan"]
    weights = layers * width * (2 * heads * head + 2 * keys * head + 3 * mlp) + vocabulary * width
    kept = 2 * layers * keys * head * (slots // 2 * 512 + prefix)
    by_hand = 2 * (weights + kept) / 2  # bytes of bfloat16, half of the heads and of the wide dimensions a chip
    unembedding = vocabulary * width  # bytes a chip; it may stay on chip for the tokens of a call
    assert by_hand - unembedding <= plan["programs"]["decode"]["bytes"] < 1.15 * by_hand
    assert plan["attention"] == "splash"
    assert all(plan["programs"][name]["kernels"] for name in ("read_prefix", "admit_512"))


@without_libtpu
def test_what_does_not_fit_a_chip_has_its_figures_all_the_same(shape, tmp_path):
    settings = (f"--gin.Model.path={shape}", "--gin.Train.batch_rows=4", "--gin.Train.row_length=2048")
    large = ("--gin.Plan.input_tokens=1000", "--gin.Model.remat=none", "--gin.Train.batch_rows=2048")
    done = elsewhere(*settings, *large, "--gin.Mesh.fsdp=4", "--topology=v5e:2x2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    plan = results(tmp_path)["details"]["plan"]
    step = plan["programs"]["step"]
    assert plan["fits"] is False
    assert step["memory"]["total"] > plan["target"]["memory"]
    assert step["largest"]
    assert step["flops"] > 0
    assert "does not fit" in done.stdout


@without_libtpu
def test_a_slice_that_nobody_makes_is_refused(shape, tmp_path):
    done = elsewhere(f"--gin.Model.path={shape}", "--topology=v5x:2x2", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "is no slice that libtpu knows" in done.stderr


def test_without_libtpu_a_slice_cannot_be_planned_for(monkeypatch):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"needs its compiler, libtpu: pip install"):
        target.slice_of("v5e:2x2")
