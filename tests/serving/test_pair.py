"""The fused pair over HTTP: its reasoning and answers are those of `fiat reason` and `fiat predict`."""

import asyncio
import contextlib
import json
import shutil
import sys
import types
from pathlib import Path

import openai
import pytest
from safetensors.numpy import load_file, save_file
from support.server import SMALL, serving
from support.world import SETTINGS, write_rows

from fiat_jax.errors import UserError
from fiat_jax.experiments.bundle import read_bundle
from fiat_jax.experiments.serve import Asked, Assembly, with_large_model
from fiat_jax.reasoning.native import Native
from fiat_jax.serving.choices import Usage
from fiat_jax.serving.config import Serve
from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.pair import RemoteReasoner
from fiat_jax.serving.text import TextModel
from fiat_jax.sharding import MeshConfig


@pytest.fixture(scope="module")
def rows(pair):
    """Rows that were neither trained on nor shown to θ_β."""
    return [{"id": f"n{n}", "lang": "en", "report": f"It is {sky} on hill {n}!"} for n, sky in enumerate(SKIES)]


SKIES = ("sunny", "grey", "clear", "rainy", "sunny", "rainy")


@pytest.fixture(scope="module")
def predicted(pair, rows):
    """What the two commands say of the rows: reasoning by id, and predictions by id."""
    write_rows(pair.root / "new.jsonl", rows)
    asked = ("--gin_file=weather.gin", "--gin.Prompts.file=pair/prompts.yaml", "--gin.Native.path=large", *SMALL)
    splits = "--gin.Task.splits={'train': 'weather/train.jsonl', 'new': 'new.jsonl'}"
    where = ("--gin.Reasoning.store=served_store",)
    pair.fiat("reason", "--backend=native", *asked, *where, splits, "--gin.Reason.splits=('new',)")
    pair.fiat("predict", "pair", "new.jsonl", "--out=predicted.jsonl", *where, "--gin.Reasoning.set=")
    (part,) = (pair.root / "served_store").glob("*/parts/*.jsonl")
    reasoning = {record["row_id"]: record for record in read_rows(part)}
    return reasoning, {one["id"]: one for one in read_rows(pair.root / "predicted.jsonl")}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_served_answers_are_those_of_reason_and_predict(client, rows, predicted):
    reasoning, predictions = predicted
    assert len({record["text"] for record in reasoning.values()}) > 2
    for row in rows:
        found = client.chat.completions.create(model="fiat", messages=[{"role": "user", "content": row["report"]}])
        record, prediction = reasoning[row["id"]], predictions[row["id"]]
        message, more = found.choices[0].message, found.model_extra["fiat"]
        assert message.reasoning_content == record["text"]
        assert more["large_answer"] == record["answer"]
        assert message.content == prediction["prediction"]
        assert more["scores"] == pytest.approx(prediction["scores"], abs=1e-3)
        assert found.usage.prompt_tokens_details.cached_tokens > 40
        assert found.usage.completion_tokens == record["completion_tokens"]


def test_a_row_may_be_its_fields_and_the_answer_a_stream(client, http, rows):
    row = {"report": rows[1]["report"]}
    whole = client.chat.completions.create(messages=[{"role": "user", "content": row["report"]}], model="fiat")
    asked = {"messages": [{"role": "user", "content": "ignored"}], "row": row}
    given = http.post("/v1/chat/completions", json=asked).json()  # the pair is what is asked where none is named
    assert given["choices"][0]["message"]["content"] == whole.choices[0].message.content
    said = json.dumps({"report": row["report"]})
    chunks = list(client.chat.completions.create(
        messages=[{"role": "user", "content": said}], model="fiat", stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasoning = [delta.model_extra.get("reasoning_content") for delta in deltas]
    assert "".join(text or "" for text in reasoning) == whole.choices[0].message.reasoning_content
    assert sum(text is not None for text in reasoning) > 3
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-2].model_extra["fiat"] == whole.model_extra["fiat"]
    assert chunks[-1].usage == whole.usage
    plain = client.completions.create(model="fiat", prompt=said)
    assert plain.choices[0].text == whole.choices[0].message.content
    assert plain.model_extra["reasoning"] == whole.choices[0].message.reasoning_content


def test_the_tuned_model_is_served_by_itself(client):
    found = client.completions.create(model="fiat-tau", prompt="It is", max_tokens=5, temperature=0, logprobs=1)
    assert found.usage.completion_tokens >= 1
    (listed,) = (model for model in client.models.list().data if model.id == "fiat-tau")
    assert listed.model_extra["attention"] == "plain"


def test_what_a_pair_cannot_answer_is_said(client):
    def chat(**more):
        return client.chat.completions.create(model="fiat", messages=[{"role": "user", "content": "x"}], **more)

    with pytest.raises(openai.BadRequestError, match="field 'report' is missing; task 'weather' needs"):
        chat(extra_body={"row": {"rapport": "It is"}})
    with pytest.raises(
        openai.BadRequestError, match=r"field 'report' is .*, but pair/prompts\.yaml declares it as text"
    ):
        chat(extra_body={"row": {"report": ["It is"]}})
    for name, value in (("n", 2), ("stop", "x"), ("logprobs", True)):
        with pytest.raises(openai.BadRequestError, match=f"{name}: a fused pair answers as it was trained"):
            chat(**{name: value})
    long = "It is sunny on hill 3! " * 200
    with pytest.raises(openai.BadRequestError, match="tokens"):
        chat(extra_body={"row": {"report": long}})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match="answers one user's message"):
        client.chat.completions.create(model="fiat", messages=messages)


def test_both_models_may_be_behind_urls_and_then_answer_the_same(server, pair, client, rows):
    url = f"{server.url}/v1"
    remote = (
        f"--gin.Endpoint.url={url}", "--gin.Endpoint.model=large", "--gin.Endpoint.api=completions",
        "--gin.Endpoint.send=ids", "--gin.Serve.tokenizer=large",
        f"--gin.tau/Endpoint.url={url}", "--gin.tau/Endpoint.model=fiat-tau",
    )  # fmt: skip
    with serving(pair, "--bundle=pair", *remote) as front:
        assert [model.id for model in front.openai().models.list()] == ["fiat"]
        for row in rows[:3]:
            asked = {"model": "fiat", "messages": [{"role": "user", "content": row["report"]}]}
            here, there = (one.chat.completions.create(**asked) for one in (client, front.openai()))
            assert there.choices == here.choices
            assert there.model_extra["fiat"]["scores"] == pytest.approx(here.model_extra["fiat"]["scores"], abs=1e-3)
            chunks = front.openai().chat.completions.create(**asked, stream=True)
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
            told = [piece for delta in deltas if (piece := getattr(delta, "reasoning_content", None))]
            assert "".join(told) == here.choices[0].message.reasoning_content
            assert len(told) > 1


@pytest.mark.parametrize("policy", ["refuse", "answer"])
def test_what_happens_without_the_large_model_is_as_declared(pair, policy, rows):
    nowhere = (
        "--gin.Endpoint.url=http://127.0.0.1:9/v1", "--gin.Endpoint.model=gone", "--gin.Endpoint.attempts=1",
        f"--gin.Serve.when_reasoning_fails={policy}",
    )  # fmt: skip
    with serving(pair, "--bundle=weather=pair", *nowhere) as server:
        asked = {"model": "weather", "messages": [{"role": "user", "content": rows[0]["report"]}]}
        if policy == "refuse":
            with pytest.raises(openai.InternalServerError, match="the large model did not answer") as refused:
                server.openai().chat.completions.create(**asked)
            assert refused.value.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "5"
            return
        found = server.openai().chat.completions.create(**asked)
        assert found.choices[0].message.content in ("good", "bad")
        assert "the large model did not answer" in found.model_extra["fiat"]["without_reasoning"]
        assert 'fiat_without_reasoning_total{model="weather"} 1.0' in server.http().get("/metrics").text


def test_a_large_model_that_keeps_one_waiting_is_given_up_when_the_request_s_time_is_over():
    class Slow:
        async def complete(self, prompt, *, seed, sample, heard):
            heard("It is")
            await asyncio.sleep(60)

    async def ask(told):
        async for piece in RemoteReasoner(Slow(), seconds=0.05).stream(None, 0, Usage()):  # pyright: ignore
            told.append(piece.text)

    told = []
    with pytest.raises(ApiError, match=r"did not answer within 0\.05 s") as late:
        asyncio.run(ask(told))
    assert (late.value.status, told) == (504, ["It is"])


def test_what_is_missing_is_said_before_anything_is_loaded(pair, capsys):
    for arguments, message in (
        ((), "nothing to serve: give --bundle DIR"),
        (("--bundle=pair",), "fiat: θ_τ reads the reasoning of Large, and none is given: --gin.Native.path=DIR"),
        (("--bundle=pair", "--bundle=run"), "gives 2 pairs the names fiat, fiat: write --bundle NAME=DIR each"),
        (("--gin.Native.path=large", "--gin.Endpoint.model=x"), "both Native and Endpoint are set"),
        (("--gin.Native.path=large", "--gin.Serve.host=0.0.0.0"), "can be reached from elsewhere: set a key in"),
        (("--gin.Native.path=large", "--gin.Serve.max_length=4096"), "the model reads 2048 tokens"),
        (("--gin.Native.path=large", "--gin.Serve.prot=1"), "Serve has no parameter 'prot'; it has host"),
    ):
        assert pair.main("serve", *arguments) == 2
        assert message in capsys.readouterr().err


def test_a_bundle_is_all_that_is_needed_where_its_large_model_wrote_the_reasoning(pair):
    asked = ("--gin_file=weather.gin", "--gin.Prompts.file=pair/prompts.yaml", "--gin.Reasoning.store=own_store")
    pair.fiat("reason", "--backend=native", *asked, "--gin.Native.path=large", *SMALL)
    pair.fiat("train", "--workdir=own", *asked, *SETTINGS, "--gin.Train.epochs=1")
    row = read_rows(pair.root / "weather" / "test.jsonl")[0]
    (part,) = (pair.root / "own_store").glob("*/parts/*.jsonl")
    record = next(record for record in read_rows(part) if record["row_id"] == row["id"])
    with serving(pair, "--bundle=own") as server:
        assert not [line for line in server.lines if "warning" in line]
        found = server.openai().chat.completions.create(
            messages=[{"role": "user", "content": row["report"]}], model="fiat"
        )
    assert found.choices[0].message.reasoning_content == record["text"]
    prompts = pair.root / "own" / "bundle" / "prompts.yaml"
    prompts.write_text(prompts.read_text().replace("max_tokens: 24", "max_tokens: 23"))
    with serving(pair, "--bundle=own", "--gin.Native.path=model", *SMALL, ready=False) as server:
        server.says("warning: fiat: I_β in")
        server.says("warning: fiat: the weights in model are not those of large")


def test_bundles_of_several_large_models_need_to_be_told_which_one_answers():
    one, other = (types.SimpleNamespace(asked={"kind": "native", "path": path}) for path in ("one", "other"))

    def asked(*bundles):
        named = {str(n): bundle for n, bundle in enumerate(bundles)}
        return Asked(Serve(), named, None, None, None, MeshConfig())  # pyright: ignore

    assert with_large_model(asked(one, one)).native == Native("one")
    with pytest.raises(UserError, match="asked of several models; say which one answers"):
        with_large_model(asked(one, other))


def test_pairs_of_one_base_share_an_engine(pair):
    with contextlib.chdir(pair.root):
        bundles = {name: read_bundle("pair") for name in ("one", "two")}
        small = Native("large", dtype="float32", slots=2, block=4, prefill_rows=2)
        assembly = Assembly(Asked(Serve(shortest_bucket=512), bundles, small, None, None, MeshConfig()), print)
        models = assembly.load(Gate(1))
    one, two = models["one-tau"], models["two-tau"]
    assert isinstance(one, TextModel)
    assert isinstance(two, TextModel)
    assert one.worker is two.worker
    assert (one.adapter, two.adapter) == ("", "two")


def test_pairs_of_one_base_share_it_and_each_answers_with_its_own_adapter(pair, rows, predicted):
    other = pair.root / "other"
    shutil.copytree(pair.root / "pair", other)
    (weights,) = (other / "adapter").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({n: -x if "lora_B" in n else x for n, x in tensors.items()}, weights, {"format": "pt"})
    where = ("--gin.Reasoning.store=served_store", "--gin.Reasoning.set=")
    pair.fiat("predict", "other", "new.jsonl", "--out=other.jsonl", *where)
    expected = {"one": predicted[1], "two": {one["id"]: one for one in read_rows(pair.root / "other.jsonl")}}
    models = ("--bundle=one=pair", "--bundle=two=other", "--gin.Native.path=large")
    with serving(pair, *models, *SMALL) as server:
        client = server.openai()
        assert [model.id for model in client.models.list()] == ["one", "two", "large", "one-tau", "two-tau"]
        for row in rows:
            for name, predictions in expected.items():
                asked = {"model": name, "messages": [{"role": "user", "content": row["report"]}]}
                scores = client.chat.completions.create(**asked).model_extra["fiat"]["scores"]
                assert scores == pytest.approx(predictions[row["id"]]["scores"], abs=1e-3)
        assert expected["one"][row["id"]]["scores"] != pytest.approx(expected["two"][row["id"]]["scores"], abs=0.1)
        if sys.platform == "linux":
            loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
            assert "jaxlib" in loaded
            assert "tensorflow" not in loaded
            assert "torch" not in loaded
