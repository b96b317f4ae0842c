"""`fiat prompt diff`, `score` and `draft`, and the guards against leaks."""

import json

import pytest
import yaml
from support.endpoint import answer

from fiat_jax.errors import UserError
from fiat_jax.experiments.prompt_score import for_scoring
from fiat_jax.tasks.task import Task


def said(text):
    body = answer()
    body["choices"][0] |= {"message": {"role": "assistant", "content": text}, "text": text}
    return {"body": body}


@pytest.fixture
def files(project, tmp_path):
    """Two instruction files: the world's own, and one whose I_β says more."""
    text = (project.root / "weather.yaml").read_text()
    more = tmp_path / "more.yaml"
    more.write_text(text.replace("Reason step by step,", "Name the sky,"))
    return "weather.yaml", more


@pytest.fixture
def asked(endpoint):
    return ("--backend=openai", f"--gin.Endpoint.url={endpoint.url}", "--gin.Endpoint.model=big")


def test_a_diff_shows_what_the_models_are_told_and_what_it_costs(project, files, tmp_path, capsys):
    arguments = ("--task=weather.gin",)
    assert project.main("prompt", "diff", *files, *arguments) == 0
    told = capsys.readouterr().out
    assert "-Reason step by step, then answer" in told
    assert "+Name the sky, then answer" in told
    assert "needs a reasoning set of its own" in told
    assert "I_τ: the same." in told
    commented = tmp_path / "commented.yaml"
    commented.write_text("# a comment\n" + (project.root / "weather.yaml").read_text())
    assert project.main("prompt", "diff", "weather.yaml", commented, *arguments) == 0
    assert capsys.readouterr().out.strip() == "I_β: the same set. I_τ: the same."


def test_scoring_prints_the_cost_first_and_reads_no_test_row(project, files, asked, endpoint, tmp_path, capsys):
    task = tmp_path / "broken.gin"
    settings = (project.root / "weather.gin").read_text().replace("weather/test.jsonl", "nowhere/test.jsonl")
    assert "nowhere" in settings
    task.write_text(settings)
    arguments = (
        "prompt", "score", *files, f"--task={task}", *asked, "--gin.Reason.tokenizer=model", "--gin.Model.path=model",
        "--gin.Endpoint.price_in=10", "--gin.Endpoint.price_out=10", f"--gin.Reasoning.store={tmp_path}/store",
        f"--workdir={tmp_path}/work", "--rows=8",
    )  # fmt: skip
    assert project.main(*arguments, "--dry_run") == 0
    told = capsys.readouterr().out
    assert told.count("8 requests of 8 are not stored") == 2
    assert "which cost" in told
    assert endpoint.requests == []
    assert project.main(*arguments, "--split=test") == 2
    assert "never on 'test'" in capsys.readouterr().err
    assert project.main(*arguments, "--split=train") == 2
    assert "on rows that no prompt shows" in capsys.readouterr().err


@pytest.mark.slow
def test_the_candidate_whose_reasoning_says_more_of_the_answer_comes_first(project, files, asked, endpoint, tmp_path):
    def reply(n, request):
        return said(f"so. So the answer is {'good' if 'Name the sky' in json.dumps(request.body) else 'bad'}.")

    endpoint.reply = reply
    settings = ("--gin.Prompts.max_length=96", "--gin.Train.row_length=128", "--gin.Train.batch_rows=8")
    project.fiat(
        "prompt", "score", *files, "--task=weather.gin", *asked, "--gin.Reason.tokenizer=model", *settings,
        "--gin.Model.path=model", f"--gin.Reasoning.store={tmp_path}/store", f"--workdir={tmp_path}/work", "--rows=12",
    )  # fmt: skip
    found = {one["file"]: one for one in json.loads((tmp_path / "work" / "prompts.json").read_text())}
    assert {name: one["accuracy"] for name, one in found.items()} == {str(files[0]): 50, str(files[1]): 50}
    gains = [one["gain"] for one in found.values()]
    assert gains == sorted(gains, reverse=True)
    for one in found.values():
        assert one["gain"] == pytest.approx(one["with_reasoning"] - one["without"])
    assert len(endpoint.requests) == 24


def test_a_task_for_scoring_has_neither_a_test_split_nor_any_other():
    task = Task(
        "t", {name: f"{name}.jsonl" for name in ("train", "validation", "test", "new")}, fields=("x",), kind="text"
    )
    assert set(for_scoring(task, "validation", ["train"]).splits) == {"train", "validation"}
    for split in ("test", "train"):
        with pytest.raises(UserError):
            for_scoring(task, split, ["train"])


def test_a_draft_is_refused_by_every_prompt_until_a_person_has_reviewed_it(project, asked, endpoint, tmp_path, capsys):
    endpoint.reply = lambda n, request: said("grey is wet. So the answer is bad.")
    rows = [json.loads(line) for line in (project.root / "weather/train.jsonl").read_text().splitlines()][:2]
    out = tmp_path / "drafted.yaml"
    arguments = (
        "prompt", "draft", "weather.yaml", "--task=weather.gin", *asked, "--gin.Reason.tokenizer=model",
        f"--rows={','.join(row['id'] for row in rows)}", f"--out={out}",
    )  # fmt: skip
    assert project.main(*arguments) == 0
    drafts = yaml.safe_load(out.read_text())
    assert [one["id"] for one in drafts] == [row["id"] for row in rows]
    assert [one["answer"] for one in drafts] == [row["answer"] for row in rows]
    assert all(one["rationale"] == "grey is wet." and one["unreviewed"] for one in drafts)
    prompt = yaml.safe_load((project.root / "weather.yaml").read_text())
    prompt["reasoning"]["exemplars"] = drafts
    file = tmp_path / "prompt.yaml"
    file.write_text(yaml.safe_dump(prompt))
    capsys.readouterr()
    assert project.main("prompt", "lint", file, "--task=weather.gin") == 2
    assert "was drafted by a model and nobody has reviewed it" in capsys.readouterr().err
    for one in drafts:
        del one["unreviewed"]
    file.write_text(yaml.safe_dump(prompt))
    assert project.main("prompt", "lint", file, "--task=weather.gin") == 0
    assert project.main(*arguments) == 2
    assert "is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [("--split=validation", "exemplars come from training rows alone"), ("--rows=nobody", "has no row 'nobody'")],
)
def test_a_draft_is_of_training_rows_alone(project, asked, tmp_path, capsys, changed, told):
    arguments = (
        "prompt", "draft", "weather.yaml", "--task=weather.gin", *asked, "--gin.Reason.tokenizer=model", "--rows=w0",
        f"--out={tmp_path}/drafted.yaml",
    )  # fmt: skip
    assert project.main(*arguments, changed) == 2
    assert told in capsys.readouterr().err
