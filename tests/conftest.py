"""Eight fake CPU devices, JAX at its strictest, and the data that lies beside the checkout."""

import contextlib
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
if version("jax").startswith("0.10."):  # gradients compile three times faster; later versions lack the flag, and abort
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# One program is compiled once a session, by one of xdist's workers, also where tests start processes.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="fiat-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["FIAT_COMPILATION_CACHE"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# torch's CUDA build, which pip takes where there is no CPU build, imports triton: after TensorFlow that is a crash
sys.modules["triton"] = None  # type: ignore[assignment]

import fsspec
import jax
import pytest
from support.endpoint import Endpoint
from support.once import made_once
from support.world import IMPORT, SETTINGS, World, make_world

jax.config.update("jax_numpy_rank_promotion", "raise")


# Files of minutes, begun before the others, so that no worker is left alone with one at the end.
LONG = {
    *("test_esnli.py", "test_matrix.py", "test_multihost.py", "test_pair.py", "test_faults.py", "test_processes.py"),
    *("test_engine.py", "test_meshes.py", "test_resume.py", "test_run.py", "test_hosts.py", "test_new_task.py"),
    *("test_slurm.py", "test_step.py", "test_endings.py", "test_end_to_end.py", "test_end_to_end_t5.py"),
    *("test_other_layouts.py", "test_random_kills.py"),
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tasks and a real checkpoint (FIAT_SHARED, or ../shared beside the checkout): no part of the project."""
    shared = Path(os.environ.get("FIAT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (shared / "data" / "esnli" / "train.jsonl").is_file():
        pytest.skip(f"no shared data at {shared / 'data'}; set FIAT_SHARED to the folder that holds data/")
    return shared / "data"


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """Return a function that puts into a folder the tiny world `project`."""

    def make(root: Path) -> None:
        world = make_world(root)
        assert world.main("data", "split", "data/weather.jsonl", "--out=weather", "--stratify=lang,answer") == 0
        assert world.main("init", "weather/train.jsonl", "--out=.") == 0
        assert world.main("reason", "--import=data/weather.jsonl", "--gin_file=weather.gin", *IMPORT) == 0

    return lambda folder: World(made_once(tmp_path_factory, "project", make, folder))


@pytest.fixture(scope="session")
def project(new_project, tmp_path_factory) -> World:
    """A tiny world whose task weather is split, drafted, and has its reasoning in the store."""
    return new_project(tmp_path_factory.mktemp("project") / "world")


@pytest.fixture
def endpoint():
    """An endpoint on loopback."""
    with contextlib.closing(Endpoint()) as started:
        yield started


@pytest.fixture(scope="session")
def trained(project, new_project, tmp_path_factory) -> World:
    """The same after `fiat train --workdir=run`, whose output is in run.txt."""

    def make(folder: Path) -> None:
        world = new_project(folder / "world")
        done = world.fiat("train", "--workdir=run", "--gin_file=weather.gin", *SETTINGS)
        (folder / "run.txt").write_text(done.stdout)
        (world.root / "run").rename(folder / "run")
        shutil.rmtree(world.root)

    made_once(tmp_path_factory, "trained", make, project.root)
    return project


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    """The URL of an empty bucket of an S3 on loopback, which the environment leads to."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FIAT_FETCHED": str(tmp_path_factory.mktemp("fetched")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("runs")
        yield "s3://runs"
    server.stop()


@pytest.fixture(scope="module")
def chromium():
    """Playwright's own Chromium, or the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested with the extra `test`")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        path = own if Path(own).exists() else shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("no Chromium here: `playwright install chromium`, or the package of the system")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()
