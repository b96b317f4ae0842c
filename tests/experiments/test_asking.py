"""`fiat reason --backend=openai` as it is called: bills, shards, batches, cards, and stores that are read again."""

import json
import re
import subprocess
import sys

import pytest
from support.endpoint import answer

from fiat_jax.store import ReasoningStore

PRICES = ("--gin.Endpoint.price_in=1.0", "--gin.Endpoint.price_out=10.0")


def good(n, request):
    """The answer "good" to every row, whatever it says."""
    text = "It looks fine. So the answer is good."
    choice = {"message": {"content": text}, "finish_reason": "length" if n % 4 == 0 else "stop"}
    return {"body": answer() | {"choices": [choice]}}


@pytest.fixture
def ask(project, endpoint, tmp_path):
    """Run `fiat reason` against the endpoint, with the first training row as exemplar and a store of the test's own."""
    first = json.loads((project.root / "weather/train.jsonl").read_text().splitlines()[0])["id"]
    prompts = (project.root / "weather.yaml").read_text().replace("ids: []", f"ids: [{first}]")
    (tmp_path / "weather.yaml").write_text(prompts)
    endpoint.reply = good

    def arguments(*more):
        return (
            "reason", "--backend=openai", "--gin_file=weather.gin", "--gin.Reason.tokenizer=model",
            f"--gin.Prompts.file={tmp_path}/weather.yaml", f"--gin.Endpoint.url={endpoint.url}",
            "--gin.Endpoint.model=big", f"--gin.Reasoning.store={tmp_path}/store", f"--workdir={tmp_path}/work", *more,
        )  # fmt: skip

    def ask(*more):
        return project.main(*arguments(*more))

    ask.arguments, ask.store, ask.work = arguments, ReasoningStore(tmp_path / "store"), tmp_path / "work"
    return ask


def told(capsys):
    out = capsys.readouterr()
    return re.sub(r"\s+", " ", out.out + out.err)


def stored(ask):
    return ask.store.lookup(ask.store.resolve())


def test_the_bill_comes_before_the_first_request_and_the_sum_after_the_last(ask, endpoint, capsys):
    assert ask(*PRICES, "--dry_run") == 0
    assert endpoint.requests == []
    assert re.search(r"120 requests of 120 .* at most 30,720 answer tokens, which cost 0\.3\d+ at most", told(capsys))
    assert ask(*PRICES) == 0
    cost = 120 * (11 * 1.0 + 7 * 10.0) / 1e6
    said = told(capsys)
    assert "120 written, 0 were there, 0 in quarantine; of those written 30 cut short; 1,320 + 840 tokens" in said
    assert f", cost {cost:.4f}," in said
    assert "agree with the labels in" in said


def test_a_run_that_reaches_its_limit_of_costs_says_how_to_go_on_and_can(ask, endpoint, capsys):
    assert ask(*PRICES, "--gin.Generate.max_cost=0.01", "--gin.Generate.concurrency=2") == 75
    said = told(capsys)
    assert re.search(r"interrupted after \d+ of 120: 0\.00\d+ are spent.*Generate\.max_cost, 0\.0100; raise it", said)
    first = len(endpoint.requests)
    assert 0 < first < 120
    assert ask(*PRICES) == 0
    assert len(endpoint.requests) == 120


def test_the_card_holds_the_figures_of_the_set_and_is_the_same_whoever_asks(ask, endpoint, project):
    assert ask(*PRICES) == 0
    card = json.loads((ask.work / "card.json").read_text())
    rows = {
        name: (project.root / f"weather/{name}.jsonl").read_text().splitlines()
        for name in ("train", "validation", "test")
    }
    rows = [json.loads(line) for lines in rows.values() for line in lines][1:]  # without the exemplar
    right = [row["answer"] == "good" for row in rows]
    assert card["agreement"]["all"] == {"value": round(100 * sum(right) / 119, 4), "n": 119}
    assert sum(card["agreement"][lang]["n"] for lang in ("en", "de")) == 119
    assert (card["rows"], card["records"], card["cut_short"]) == (120, 120, {"records": 30, "share": 0.25})
    assert card["answer_tokens"] == {"known": 120, "sum": 840, "min": 7, "median": 7, "p95": 7, "max": 7}
    assert card["cost"] == pytest.approx(120 * 81 / 1e6)
    assert card["asked"]["model"] == card["provenance"]["model"]["name"] == "big"
    before = [(ask.work / name).read_bytes() for name in ("card.json", "card.md")]
    assert ask(*PRICES) == 0
    assert len(endpoint.requests) == 120
    assert [(ask.work / name).read_bytes() for name in ("card.json", "card.md")] == before
    assert f"agree with the labels in {card['agreement']['all']['value']:.1f}% of 119 rows" in before[1].decode()


def test_shards_are_asked_by_two_processes_into_one_store_each_row_once(ask, endpoint, project):
    endpoint.reply = lambda n, request: {"seconds": 0.01} | good(n, request)
    commands = [
        [sys.executable, "-m", "fiat_jax", *ask.arguments(f"--shard={index}/2", f"--workdir={ask.work}{index}")]
        for index in range(2)
    ]
    processes = [subprocess.Popen(command, cwd=project.root, env=project.env) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(endpoint.requests) == len({json.dumps(request.body) for request in endpoint.requests}) == 120
    assert len(stored(ask)) == 120
    assert ask.store.verify() == []
    assert ask() == 0
    assert len(endpoint.requests) == 120


def test_a_shard_asks_for_its_rows_alone(ask, endpoint, capsys):
    assert ask("--shard=0/3", "--dry_run") == 0
    count = int(re.search(r"(\d+) requests of (\d+) are not stored", told(capsys))[1])
    assert ask("--shard=0/3") == 0
    assert len(endpoint.requests) == count < 120
    assert ask("--shard=1/3") == ask("--shard=2/3") == 0
    assert len(endpoint.requests) == len(stored(ask)) == 120


def test_a_batch_goes_out_and_comes_in_by_files(ask, endpoint, tmp_path, capsys):
    out, back = tmp_path / "out" / "requests.jsonl", tmp_path / "answers.jsonl"
    assert ask(f"--batch_out={out}") == 0
    assert "120 requests of 120" in told(capsys)
    requests = [json.loads(line) for line in out.read_text().splitlines()]
    lines = [
        {"custom_id": request["custom_id"], "error": None, "response": {"status_code": 200, **good(1, None)}}
        for request in requests[:100]
    ]
    back.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask(f"--batch_in={back}") == 0
    said = told(capsys)
    assert "100 answers written" in said
    assert "20 of 120 requests are missing" in said
    assert endpoint.requests == []
    assert ask() == 0
    assert len(endpoint.requests) == 20


def test_a_sound_store_is_verified_and_a_damaged_one_is_an_error_with_a_list(ask, project, tmp_path, capsys):
    assert ask() == 0
    verify = ("reason", "verify", f"--store={tmp_path}/store")
    capsys.readouterr()
    assert project.main(*verify) == 0
    assert re.search(r"generated . big . 1 . 120 . 0", told(capsys))
    (part,) = (tmp_path / "store" / ask.store.resolve() / "parts").iterdir()
    part.write_bytes(part.read_bytes().replace(b"fine", b"fair", 1))
    assert project.main(*verify) == 2
    said = told(capsys)
    assert "does not hash to its name" in said
    assert "line 1: left out: checksum does not match" in said
    assert re.search(r"1 . 119 . 2", said)
    assert project.main("reason", "verify", f"--gin.Reasoning.store={tmp_path}/store") == 2


def test_options_before_an_action_are_refused_where_they_would_be_forgotten(project, capsys):
    with pytest.raises(SystemExit) as ended:
        project.main("reason", "--gin_file=weather.gin", "verify")
    assert ended.value.code == 2
    assert "say `fiat reason verify` before its options" in told(capsys)


def test_an_import_takes_no_option_of_asking(project, capsys):
    status = project.main("reason", "--import=x.jsonl", "--gin_file=weather.gin", "--shard=0/2", "--dry_run")
    assert status == 2
    assert "leave out --dry_run, --shard" in told(capsys)


@pytest.fixture
def compare(ask, project, endpoint, tmp_path):
    """Run `fiat reason compare` of the endpoint and another one by another name."""

    def compare(*more, other="big"):
        backend, *settings = ask.arguments()[1:]
        return project.main(
            "reason", "compare", backend, "--other=openai", f"--gin.other/Endpoint.model={other}", *settings, *more
        )  # fmt: skip

    return compare


def other_text(n, request):
    """As the first but for its last row in ten, which has another text, and in one of them another answer."""
    reply, asked = good(1, request), request.body["messages"][0]["content"]
    number = int(re.findall(r"(\d+)!", asked)[-1])
    if request.body["model"] == "bigger" and number % 10 == 9:
        label = "bad" if number == 19 else "good"
        reply["body"]["choices"][0]["message"]["content"] = f"It looks odd. So the answer is {label}."
    return reply


def test_two_backends_are_compared_row_by_row(compare, ask, endpoint, project, capsys):
    endpoint.reply = other_text
    first = [json.loads(line) for line in (project.root / "weather/train.jsonl").read_text().splitlines()[:40]]
    assert compare("--rows=40", other="bigger") == 0
    results = json.loads((ask.work / "results.json").read_text())
    found = {(row["language"], row["metric"]): row for row in results["rows"]}
    pairs = [json.loads(line) for line in (ask.work / "pairs.jsonl").read_text().splitlines()]
    differing = {row["id"] for row in first if int(row["id"][1:]) % 10 == 9}
    assert {one["id"] for one in pairs if not one["identical_text"]} == differing != set()
    assert {one["first_difference"] for one in pairs} == {None, len("It looks ")}
    assert {one["id"] for one in pairs if not one["equal_answer"]} == differing & {"w19"}
    for language in ("en", "de"):
        same = [one["identical_text"] for one in pairs if one["language"] == language]
        assert found[language, "identical_text"]["value"] == pytest.approx(100 * sum(same) / len(same))
    low, high = found["all", "identical_text"]["ci95"]
    assert low <= found["all", "identical_text"]["value"] <= high
    assert (results["verb"], found["all", "equal_answer"]["n"]) == ("reason compare", 40)
    assert "other/Endpoint.model = 'bigger'" in (ask.work / "config.gin").read_text()
    assert len(endpoint.requests) == 80
    assert compare("--rows=40", other="bigger") == 0
    assert len(endpoint.requests) == 80, "what was stored was asked again"
    assert compare("--rows=10", other="bigger") == 0
    assert len((ask.work / "pairs.jsonl").read_text().splitlines()) == 10


def test_one_model_may_be_compared_with_itself(compare, ask, endpoint):
    assert compare("--rows=5") == 0
    assert len(endpoint.requests) == 10
    results = json.loads((ask.work / "results.json").read_text())
    assert {row["value"] for row in results["rows"] if row["metric"] == "equal_answer"} == {100.0}


def test_a_dry_run_of_a_comparison_asks_nothing(compare, ask, endpoint):
    assert compare("--rows=5", "--dry_run") == 0
    assert endpoint.requests == []
    assert not ask.work.exists()


def test_another_name_before_a_setting_is_an_error(ask, capsys):
    assert ask("--gin.other/Endpoint.url=http://localhost:1/v1") == 2
    assert "'other' is no part" in told(capsys)
