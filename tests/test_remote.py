"""Paths in an object store: what is fetched, what is pushed, and runs whose working directory is there."""

import dataclasses
import json
import os

import fsspec
import pytest
from support.world import SETTINGS

from fiat_jax import remote
from fiat_jax.checkpoint import StoredCheckpoints
from fiat_jax.cli import main
from fiat_jax.errors import UserError
from fiat_jax.remote import doubled, fetched, push, url_of


@pytest.fixture
def store(monkeypatch, tmp_path):
    """An empty object store in memory, and nothing fetched before."""
    files = fsspec.filesystem("memory")
    monkeypatch.setenv("FIAT_FETCHED", str(tmp_path / "fetched"))
    remote._fetched.cache_clear()
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_a_local_path_stays_what_it_is(tmp_path):
    assert fetched(tmp_path / "no such file") == tmp_path / "no such file"


def test_a_directory_is_fetched_once_and_again_when_it_has_changed(store):
    store.pipe({"memory://bucket/model/config.json": b"{}", "memory://bucket/model/deep/weights": b"1234"})
    first = fetched("memory://bucket/model/")
    assert first.name == "model"
    assert (first / "deep" / "weights").read_bytes() == b"1234"
    (first / "deep" / "weights").write_bytes(b"mine")  # would be there no longer, were it fetched again
    remote._fetched.cache_clear()
    assert (fetched("memory://bucket/model") / "deep" / "weights").read_bytes() == b"mine"
    store.pipe_file("memory://bucket/model/deep/weights", b"5678")
    remote._fetched.cache_clear()
    assert (fetched("memory://bucket/model") / "deep" / "weights").read_bytes() == b"5678"


def test_a_file_is_fetched_under_its_own_name(store):
    store.pipe_file("memory://bucket/prompts/task.yaml", b"version: 1")
    found = fetched("memory://bucket/prompts/task.yaml")
    assert (found.name, found.read_text()) == ("task.yaml", "version: 1")


@pytest.mark.parametrize(
    ("url", "words"),
    [("memory://bucket/nothing", "there is nothing"), ("nosuch://bucket/model", "nosuch://bucket/model: ")],
)
def test_what_cannot_be_fetched_is_named(store, url, words):
    with pytest.raises(UserError, match=words):
        fetched(url)


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """An S3 at a port where nobody listens, and no keys; nothing of other tests' connections is used."""
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("keys", [False, True])
def test_a_store_without_keys_or_out_of_reach_is_one_clear_error(unreachable, keys, monkeypatch, capsys, tmp_path):
    if keys:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.chdir(tmp_path)
    why = "127.0.0.1:9" if keys else "credentials"
    for arguments in (
        ["train", "--workdir=s3://bucket/run"],
        ["train", "--workdir=run", "--gin_file=s3://bucket/task.gin"],
        ["reason", "verify", "--store=s3://bucket/store"],
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert "s3://bucket/" in told
        assert why in told
        assert told.count("\n") == 1, told
    for act in (StoredCheckpoints("s3://bucket/run/checkpoints/latest").latest, lambda: fetched("s3://bucket/model")):
        with pytest.raises(UserError, match=f"s3://bucket/.*{why}"):
            act()


def test_what_is_written_is_pushed_and_is_there_again(store):
    with doubled("memory://bucket/runs/one") as first:
        (first / "cells").mkdir()
        (first / "cells" / "a.json").write_text("1")
        push(first / "cells")
        assert store.cat_file("memory://bucket/runs/one/cells/a.json") == b"1"
        (first / "results.json").write_text("2")
        assert url_of(first / "checkpoints") == "memory://bucket/runs/one/checkpoints"
    assert not first.exists()
    assert url_of(first) is None
    with doubled("memory://bucket/runs/one") as second:
        assert {path.name: path.read_text() for path in second.rglob("*.json")} == {"a.json": "1", "results.json": "2"}


def test_other_processes_of_a_run_fetch_what_they_read_and_no_weights(store, monkeypatch):
    names = ("cells/a.json", "predictions/a.jsonl", "cells/a/train_log.jsonl", "cells/a/bundle/adapter/w.safetensors")
    store.pipe({f"memory://bucket/run/{name}": b"1" for name in names})

    def held():
        with doubled("memory://bucket/run") as local:
            return {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}

    monkeypatch.setenv("FIAT_COORDINATOR", "host:9")
    monkeypatch.setenv("FIAT_PROCESS_ID", "0")
    assert held() == set(names)
    monkeypatch.setenv("FIAT_PROCESS_ID", "3")
    assert held() == set(names[:2])
    monkeypatch.delenv("FIAT_COORDINATOR")  # a shard, which is a run of its own
    assert held() == set(names)
    assert all(store.exists(f"memory://bucket/run/{name}") for name in names)


def test_only_what_has_changed_is_pushed_and_what_names_it_comes_after_it(store, monkeypatch):
    stored = []
    put = store.put_file
    monkeypatch.setattr(
        store, "put_file", lambda local, path: stored.append(path.rpartition("/")[2]) or put(local, path)
    )
    with doubled("memory://bucket/run") as local:
        for at, name in enumerate(("z-predictions.jsonl", "a-facts.json")):
            (local / name).write_text(name)
            os.utime(local / name, (at, at))
        push(local)
        push(local)
        (local / "log.jsonl").write_text("more")
        (local / "cache").mkdir()
        (local / "cache" / "tokens").write_text("made anew")
        (local / ".half-written").write_text("x")
    assert stored == ["z-predictions.jsonl", "a-facts.json", "log.jsonl"]


def test_a_verb_that_writes_local_files_alone_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run", "--out=s3://bucket/report.html"]) == 2
    assert main(["init", "rows.jsonl", "--out=s3://bucket/task"]) == 2
    assert capsys.readouterr().err.count("writes local files alone") == 2
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_directory_is_stored_as_that_directory(store):
    with doubled("memory://bucket/run") as local:
        (local / "cells" / "one").mkdir(parents=True)
        (local / "cells" / "one" / "bundle.json").write_text("{}")
        (local / "bundle").symlink_to(local / "cells" / "one")
    assert store.cat_file("memory://bucket/run/bundle/bundle.json") == b"{}"


def test_a_run_whose_every_path_is_in_a_store_gives_what_a_local_one_gives(trained, bucket):
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    for name in ("model", "weather", "reasoning_store"):
        files.put(str(trained.root / name), f"{bucket.removeprefix('s3://')}/{name}", recursive=True)
    for name in ("weather.yaml", "weather.gin"):
        files.put_file(str(trained.root / name), f"{bucket}/{name}")
    splits = {split: f"{bucket}/weather/{split}.jsonl" for split in ("train", "validation", "test")}
    there = (
        f"--gin.Model.path={bucket}/model",
        f"--gin.Prompts.file={bucket}/weather.yaml",
        f"--gin.Reasoning.store={bucket}/reasoning_store",
        f"--gin.Task.splits={splits}",
    )
    away = trained.root / "away"  # where nothing lies
    away.mkdir()
    elsewhere = dataclasses.replace(trained, root=away)
    elsewhere.fiat("train", f"--workdir={bucket}/run", f"--gin_file={bucket}/weather.gin", *SETTINGS, *there)
    here, stored = (
        json.loads((trained.root / "run/results.json").read_text()),
        read(files, f"{bucket}/run/results.json"),
    )
    assert figures(stored) == figures(here)
    elsewhere.fiat("evaluate", f"{bucket}/run", f"--data=held={splits['test']}", f"--workdir={bucket}/held")
    trained.fiat("evaluate", "run", "--data=held=weather/test.jsonl", "--workdir=held-here")
    here = json.loads((trained.root / "held-here/results.json").read_text())
    assert figures(read(files, f"{bucket}/held/results.json")) == figures(here)
    elsewhere.fiat("export", f"{bucket}/run", "--format=peft", f"--out={bucket}/adapter")
    weights = "adapter_model.safetensors"
    assert files.cat_file(f"{bucket}/adapter/{weights}") == (trained.root / "run/bundle/adapter" / weights).read_bytes()
    assert not list(away.iterdir())


def read(files, url):
    return json.loads(files.cat_file(url))


def figures(results):
    return [(row["language"], row["metric"], row["value"], row["ci95"], row["n"]) for row in results["rows"]]
