"""Each mistake in the input, seen through the command: one clear message, status 2, nothing compiled, nothing lost."""

import json
import re
import shlex
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file
from support.world import SETTINGS, World, write_rows

RUN = "run/cells/fiat-96-seed0"
TRAIN = ("train", "--workdir=run", "--gin_file=weather.gin", *SETTINGS)


@pytest.fixture
def world(trained, tmp_path) -> World:
    """A copy of the world with a finished run, to be spoilt."""
    shutil.copytree(trained.root, tmp_path / "world", symlinks=True)
    return World(tmp_path / "world")


@pytest.fixture
def compiled():
    """The programs that are compiled during a test."""
    seen = []

    def listen(event: str, seconds: float, **about) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def refused(world, compiled, capsys):
    """Run the command, which must exit with 2 and keep every file as it is; return its message."""

    def refused(*arguments: object) -> str:
        before = files(world)
        capsys.readouterr()
        compiled.clear()
        assert world.main(*arguments) == 2
        told = capsys.readouterr().err.strip()
        assert before.items() <= files(world).items()
        assert told.startswith(f"fiat {arguments[0]}: ")
        assert len(told.splitlines()) == 1
        return told

    return refused


def files(world) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in world.root.rglob("*") if path.is_file()}


def change_line(world, change, split="train", number=5) -> None:
    """Replace one line of a split of the task, bytes to bytes."""
    path = world.root / f"weather/{split}.jsonl"
    lines = path.read_bytes().splitlines()
    lines[number - 1] = change(lines)
    path.write_bytes(b"\n".join(lines) + b"\n")


def changed_row(**fields):
    def change(lines: list[bytes]) -> bytes:
        row = json.loads(lines[4]) | fields
        return json.dumps({name: value for name, value in row.items() if value is not None}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_row(report=None), "field 'report' is missing; task 'weather' needs id, report, lang, answer."),
        (
            changed_row(answer="goood"),
            "unknown label 'goood' in field 'answer'; labels are bad, good. Did you mean",
        ),
        (lambda lines: lines[4][:20] + b"\xff" + lines[4][20:], "byte 21 is not UTF-8; save the file as UTF-8"),
        (lambda lines: lines[1], "is also that of weather/train.jsonl line 2; ids must differ"),
    ],
    ids=["a field is missing", "unknown label", "invalid UTF-8", "duplicated id"],
)
def test_a_wrong_row_is_named_with_its_file_and_line(world, refused, compiled, change, message):
    change_line(world, change)
    told = refused(*TRAIN)
    assert "weather/train.jsonl line 5" in told
    assert message in told
    assert not compiled


@pytest.mark.parametrize("name", ["patience", "evaluate_every", "checkpoint_every", "min_steps", "seed"])
def test_a_count_below_zero_is_named(world, refused, compiled, name):
    assert f"Train.{name} is -1; it must be 0 or more" in refused(*TRAIN, f"--gin.Train.{name}=-1")
    assert not compiled


@pytest.mark.parametrize(
    ("name", "value"), [("sizes", "(48, -5)"), ("seeds", "(0, -1)"), ("learning_rates", "(1e-3, -1e-3)")]
)
def test_what_an_experiment_cannot_have_is_named_before_its_first_cell(world, refused, compiled, name, value):
    told = refused(
        "experiment", "--workdir=some", "--gin_file=weather.gin", *SETTINGS, f"--gin.Experiment.{name}={value}"
    )
    assert f"Experiment.{name} is (" in told
    assert not compiled


def test_an_empty_file_is_named(world, refused, compiled):
    (world.root / "weather/validation.jsonl").write_text("")
    assert "weather/validation.jsonl holds no rows" in refused(*TRAIN)
    assert not compiled


def test_a_model_file_cut_short_is_named(world, refused, compiled):
    path = world.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert re.search(
        r"model/model.safetensors \(\d+ bytes\) is cut short or damaged: .*; fetch it again", refused(*TRAIN)
    )
    assert not compiled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # other reads of Orbax go on for a while
def test_a_training_checkpoint_cut_short_is_named_and_kept(world, refused):
    (world.root / f"{RUN}.json").unlink()  # the cell is not finished, and would go on
    latest = world.root / RUN / "lr-0.01/checkpoints/latest"
    largest = max((path for path in latest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    told = refused(*TRAIN)
    assert re.search(r"lr-0.01/checkpoints/latest/\d+ cannot be read", told)
    assert re.search(r"or remove \S+/lr-0.01/checkpoints to begin this run anew", told)


def test_a_tokenizer_larger_than_the_vocabulary_of_the_model_is_refused(world, refused, compiled):
    from tokenizers import Tokenizer

    path = world.model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save(str(path))
    told = refused(*TRAIN)
    assert f"the tokenizer in model has ids up to {size + 1}, but the model embeds {size} tokens" in told
    assert not compiled


def test_a_batch_that_the_mesh_does_not_divide_is_refused(refused, compiled):
    told = refused(*TRAIN, "--gin.Train.batch_rows=12")
    assert re.search(r"12 .* 8 ", told)
    assert not compiled


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "run", "weather/test.jsonl", "--out=answers.jsonl"),
        ("evaluate", "run", "--workdir=evaluated"),
        ("export", "run", "--format=merged", "--out=out"),
    ],
    ids=["predict", "evaluate", "export"],
)
def test_an_adapter_made_for_another_base_is_refused(world, refused, compiled, arguments):
    path = world.model / "model.safetensors"
    tensors = {name: array * 2 for name, array in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    told = refused(*arguments)
    assert re.search(
        r"run/bundle/adapter was trained on 'model' \(.*\), not on 'model' \(.*\); give its own base", told
    )
    assert not compiled


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("Trian.epochs=1", "unknown gin name 'Trian'; known are Task, Prompts, "),
        ("Train.epcohs=1", "Train has no parameter 'epcohs'; it has "),
    ],
)
def test_an_unknown_gin_name_is_refused_with_a_near_match(refused, compiled, setting, message):
    told = refused(*TRAIN, f"--gin.{setting}")
    assert message in told
    assert "Did you mean" in told
    assert not compiled


def test_rows_that_the_store_lacks_are_counted_with_the_command_that_makes_them(world, refused, compiled):
    rows = [{"id": f"new{n}", "lang": "en", "report": f"It is new {n}!", "answer": "good"} for n in range(3)]
    write_rows(world.root / "new.jsonl", rows)
    told = refused("predict", "run", "new.jsonl", "--out=answers.jsonl")
    assert "has no reasoning for 3 of 3 rows of task weather (new0, new1, new2); make it with `fiat reason" in told
    (command,) = re.findall(r"`fiat (.+)`", told)
    write_rows(world.root / "with.jsonl", [row | {"reasoning": "new", "large_answer": "bad"} for row in rows])
    made = command.replace("FILE", "with.jsonl").replace("...", "weather.gin")
    assert not compiled
    assert world.main(*shlex.split(made)) == 0
    assert world.main("predict", "run", "new.jsonl", "--out=answers.jsonl") == 0
    assert len((world.root / "answers.jsonl").read_text().splitlines()) == 3
    assert compiled


def test_a_store_without_reasoning_says_how_to_fill_it(world, refused, compiled):
    told = refused(*TRAIN, "--gin.Reasoning.store=nowhere")
    assert "nowhere: the store holds no reasoning, and 108 rows of task weather need it" in told
    assert "fiat reason --import FILE --gin.Reasoning.store=nowhere" in told
    assert not compiled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "run", "weather/test.jsonl", "--out=weather/test.jsonl"), "is the file that is read"),
        (("predict", "run", "weather/test.jsonl", "--out=data"), "is a folder; name the file to write"),
        (("predict", "run", "weather/test.jsonl", "--out=weather.gin/x.jsonl"), "weather.gin: File exists"),
        (("export", "run", "--format=peft", "--out=model"), "not an empty folder"),
        (("export", "run", "--format=bundle", "--out=weather.gin"), "not an empty folder"),
        (("data", "split", "data/sums.jsonl", "--out=weather.gin"), "weather.gin: File exists"),
        ((*TRAIN[:1], "--workdir=weather.gin", *TRAIN[2:]), "weather.gin: "),
        ((*TRAIN, "--gin_file=weather"), "--gin_file=weather: is a folder"),
        ((*TRAIN, "--gin.Data.selection=1.5"), "the share held out (Data.selection) must lie between 0 and 1"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_there_is_anything_to_lose(
    refused, compiled, arguments, message
):
    assert message in refused(*arguments)
    assert not compiled


def test_a_damaged_result_is_named_with_what_to_do(world, refused, compiled):
    path = world.root / f"{RUN}.json"
    path.write_text(path.read_text()[:40])
    assert "is damaged" in refused(*TRAIN)
    assert not compiled


def test_a_dry_run_refuses_what_the_run_would(refused, compiled):
    experiment = ("experiment", "--workdir=none", "--gin_file=weather.gin", *SETTINGS, "--dry_run")
    assert "sizes [5000] exceed" in refused(*experiment, "--gin.Experiment.sizes=(5000,)")
    assert not compiled


def test_another_store_is_read_for_the_set_of_training_alone(world, capsys):
    """A set of another model's reasoning is not taken for the bundle's own."""
    other = ("--gin.Import.model=Other", "--gin.Import.answer=large_answer", "--gin.Reasoning.store=other-store")
    assert world.main("reason", "--import=data/weather.jsonl", "--gin_file=weather.gin", *other) == 0
    assert world.main("predict", "run", "weather/test.jsonl", "--out=x.jsonl", "--gin.Reasoning.store=other-store") == 2
    told = capsys.readouterr().err
    assert "0 sets begin with" in told
    assert "name one with --gin.Reasoning.set=KEY" in told


def test_an_answer_that_is_no_label_and_rows_that_are_trained_on_are_pointed_out(world, capsys):
    rows = [json.loads(line) for line in (world.root / "data/weather.jsonl").read_text().splitlines()]
    write_rows(world.root / "vague.jsonl", [row | {"large_answer": "perhaps"} for row in rows])
    vague = ("--gin.Import.model=Vague", "--gin.Import.answer=large_answer", "--gin.Reasoning.store=vague-store")
    capsys.readouterr()
    assert world.main("reason", "--import=vague.jsonl", "--gin_file=weather.gin", *vague) == 0
    assert "120 answers of the large model are none of the labels bad, good" in capsys.readouterr().out
    held = (world.root / "weather/validation.jsonl").read_text().splitlines()
    row = json.loads(held[0]) | {"id": "again"}
    write_rows(world.root / "again.jsonl", [row, *map(json.loads, held[1:])])
    store = ("--gin.Reasoning.store=reasoning_store", "--gin.Run.paradigm=icl", "--gin.Data.train_split=validation")
    assert world.main("train", "--workdir=icl", "--gin_file=weather.gin", *SETTINGS, *store) == 0
    out = capsys.readouterr().out
    assert "warning: 12 of the 12 validation rows have the inputs of a row of validation" in out
    assert re.search(r"icl\s+│\s+\d", out)
