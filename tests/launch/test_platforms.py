"""What a test cannot rent: shellcheck reads scripts, schemas manifests, stand-ins with the real flags commands."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT7

from fiat_jax.errors import EXIT_RESTARTABLE, EXIT_USER

from .conftest import LAUNCH, ROOT, executable

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(path for path in LAUNCH.rglob("*") if path.suffix in (".sh", ".sbatch"))
MANIFESTS = sorted(LAUNCH.rglob("*.yaml"))
PAGES = [*sorted(LAUNCH.rglob("*.md")), ROOT / "docs" / "launch.md"]
TOOLS = ("gcloud", "kubectl", "xpk")
TPU = LAUNCH / "tpu_pod" / "tpu.sh"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(LAUNCH)))
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", script.relative_to(ROOT)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def schemas():
    """The validator of each kind of object."""
    found = {name: json.loads((HERE / "schemas" / f"{name}.json").read_text()) for name in ("kubernetes", "jobset")}
    registry = Registry().with_resources((f"{name}.json", DRAFT7.create_resource(one)) for name, one in found.items())
    kinds = {kind: f"kubernetes.json{place}" for kind, place in found["kubernetes"]["kinds"].items()}
    kinds["JobSet"] = "jobset.json#/definitions/JobSet"
    return {kind: jsonschema.Draft7Validator({"$ref": place}, registry=registry) for kind, place in kinds.items()}


def objects(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: str(path.relative_to(LAUNCH)))
def test_manifests_are_valid(manifest, schemas):
    for one in objects(manifest):
        errors = [f"{error.json_path}: {error.message}" for error in schemas[one["kind"]].iter_errors(one)]
        assert errors == []


def test_a_field_that_does_not_exist_is_no_valid_manifest(schemas):
    job = objects(LAUNCH / "gke" / "train.yaml")[0]
    job["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    assert not schemas["JobSet"].is_valid(job)


def pods(path: Path):
    """Yield each job of a manifest with its pods' specification."""
    for one in objects(path):
        jobs = [part["template"] for part in one["spec"].get("replicatedJobs", [])] or [one]
        yield from ((job["spec"], job["spec"]["template"]["spec"]) for job in jobs if "completions" in job["spec"])


@pytest.mark.parametrize("manifest", ["kubernetes/train.yaml", "gke/train.yaml"])
def test_pods_of_a_run_are_as_many_as_its_processes_and_find_the_first(manifest):
    (job, pod), name = next(pods(LAUNCH / manifest)), objects(LAUNCH / manifest)[-1]["metadata"]["name"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["FIAT_NUM_PROCESSES"] == str(job["completions"]) == str(job["parallelism"])
    first = name if "subdomain" in pod else f"{name}-slice-0"
    assert env["FIAT_COORDINATOR"] == f"{first}-0.{pod.get('subdomain', name)}:8476"


@pytest.mark.parametrize("manifest", ["kubernetes/train.yaml", "kubernetes/reason.yaml", "gke/train.yaml"])
def test_a_mistake_fails_a_job_and_an_interruption_does_not(manifest):
    job, pod = next(pods(LAUNCH / manifest))
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert (actions[1], actions[EXIT_USER]) == ("FailJob", "FailJob")
    assert actions.get(EXIT_RESTARTABLE, "restarted by the set") != "FailJob"
    assert pod["restartPolicy"] == "Never", "a pod failure policy needs it"


@pytest.mark.parametrize("file", sorted((LAUNCH / "docker").glob("*")), ids=lambda path: path.name)
def test_images_copy_what_is_there_and_install_by_the_lock(file):
    text = file.read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        assert [name for name in line.split()[:-1] if not (ROOT / name).exists()] == []
    extra = file.name.split(".")[0]
    assert f"-c requirements.lock '.[{extra}]'" in text


@pytest.fixture
def tools(bench):
    """A bench with the stand-ins; `asked` reads what they were asked."""
    for name in TOOLS:
        command = f'STAND_IN_NAME={name} exec {sys.executable} {HERE / "stand_in.py"} "$@"'
        executable(bench.root / "bin" / name, f"#!/bin/sh\n{command}\n")
    bench.env["STAND_IN_LOG"] = str(bench.root / "asked")
    return bench


def asked(bench) -> list[str]:
    log = bench.root / "asked"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def tool_lines(page: Path) -> list[str]:
    """The commands of a page's fenced blocks that call one of the tools."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(TOOLS)]


@pytest.mark.parametrize("page", [page for page in PAGES if tool_lines(page)], ids=lambda page: page.parent.name)
def test_commands_of_the_pages_are_what_the_real_tools_take(tools, page):
    lines = tool_lines(page)
    env = dict.fromkeys(("PROJECT", "ZONE", "REGION", "USER", "OPENAI_API_KEY", "KEY"), "x")
    tools.run("bash", "-euo", "pipefail", "-c", "\n".join(lines), **env)
    assert len(asked(tools)) >= len(lines)


@pytest.mark.parametrize(
    "wrong",
    [
        "gcloud compute tpus tpu-vm ssh x --workers=all",
        "kubectl wait --for-ever job/x",
        "xpk workload create --tpu=x",
        "gcloud tpu",
    ],
)
def test_the_stand_ins_refuse_what_the_real_tools_do_not_know(tools, wrong):
    assert "has no" in tools.run(*wrong.split(), status=64)


STATE, SSH = "queued-resources describe", "tpu-vm ssh"


def test_a_slice_is_asked_for_and_waited_for(tools):
    answers = {STATE: [[0, "WAITING_FOR_RESOURCES"], [0, "PROVISIONING"], [0, "ACTIVE"]]}
    tools.run(TPU, "up", STAND_IN_ANSWERS=json.dumps(answers), FIAT_POLL="0", FIAT_SPOT="1", FIAT_ACCELERATOR="v6e-16")
    first, *others = asked(tools)
    assert "--accelerator-type=v6e-16" in first
    assert first.endswith("--spot")
    assert len(others) == 3


def test_a_slice_that_cannot_be_had_is_said(tools):
    told = tools.run(TPU, "up", status=1, STAND_IN_ANSWERS=json.dumps({STATE: [[0, "FAILED"]]}), FIAT_POLL="0")
    assert "fiat is FAILED" in told


def test_all_hosts_get_the_commit_its_environment_and_the_share(tools):
    tools.run(TPU, "setup", FIAT_SHARE="10.0.0.2:/fiat")
    copied, made = asked(tools)
    assert "--worker=all" in copied
    assert "pip install --quiet -c requirements.lock -e '.[tpu]'" in made
    assert "mount '10.0.0.2:/fiat' /mnt/fiat" in made
    assert "FIAT_SHARE" in tools.run(TPU, "setup", status=1)


def test_a_run_on_all_hosts_quotes_its_words(tools):
    tools.run(TPU, "run", "fiat", "train", "--gin.Data.x=('a', 'b')")
    (line,) = asked(tools)
    remote = line.split("--command=", 1)[1].split("| tee")[0]
    assert "FIAT_DISTRIBUTED=auto fiat train " in remote
    words = remote.split("FIAT_DISTRIBUTED=auto ")[1].replace("2>&1", "")
    assert (
        subprocess.run(["bash", "-c", f"printf '%s|' {words}"], capture_output=True, text=True).stdout
        == "fiat|train|--gin.Data.x=('a', 'b')|"
    )


@pytest.mark.parametrize(("status", "runs"), [(75, 2), (69, 2), (255, 2), (2, 1)])
def test_a_run_begins_again_where_that_mends_it(tools, status, runs):
    answers = {"FIAT_DISTRIBUTED": [[status, ""], [0, ""]], STATE: [[0, "ACTIVE"]]}
    tools.run(TPU, "run", "fiat", "train", status=0 if runs == 2 else status, STAND_IN_ANSWERS=json.dumps(answers))
    assert sum("FIAT_DISTRIBUTED" in line for line in asked(tools)) == runs


def test_a_slice_that_was_taken_away_is_made_anew_before_the_run_goes_on(tools):
    answers = {"FIAT_DISTRIBUTED": [[1, ""], [0, ""]], STATE: [[0, "SUSPENDED"], [0, "ACTIVE"]]}
    tools.run(TPU, "run", "fiat", "train", STAND_IN_ANSWERS=json.dumps(answers), FIAT_SHARE="h:/s", FIAT_POLL="0")
    verbs = [
        next(verb for verb in ("describe", "delete", "create", "scp", "ssh") if f" {verb} " in line)
        for line in asked(tools)
    ]
    assert verbs == ["ssh", "describe", "delete", "create", "describe", "scp", "ssh", "ssh"]


def test_a_signal_is_handed_to_all_hosts_and_the_run_ends_as_they_do(tools):
    answers = {"FIAT_DISTRIBUTED": [[75, "", 3]], STATE: [[0, "ACTIVE"]]}
    process = tools.start(TPU, "run", "fiat", "train", STAND_IN_ANSWERS=json.dumps(answers))
    while not asked(tools):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 75, told
    run, stop = asked(tools)
    assert "FIAT_DISTRIBUTED" in run
    assert "pkill -TERM" in stop


def test_tear_down_leaves_nothing(tools):
    tools.run(TPU, "down")
    assert asked(tools) == ["gcloud compute tpus queued-resources delete fiat --zone=us-west4-a --force --quiet"]
    assert "up | setup | run" in tools.run(TPU, "away", status=2)
