"""The resolved settings of each run that ships, compared with tests/golden/: a refactor shows what it changed.

`.venv/bin/python tests/test_configs.py` writes them anew.
"""

import contextlib
import difflib
from pathlib import Path

import pytest

from fiat_jax.config import Config
from fiat_jax.experiments import sections

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
# what a run needs besides its own file
FURTHER = dict.fromkeys(("runs/fiat", "runs/laptop"), (["configs/tasks/esnli.gin"], ["Model.path=MODEL"]))
RUNS = sorted(
    str(path.relative_to(ROOT / "configs").with_suffix(""))
    for folder in ("runs", "experiments")
    for path in (ROOT / "configs" / folder).glob("*.gin")
)


def golden(run: str) -> Path:
    return GOLDEN / f"{run.replace('/', '-')}.gin"


def resolved(run: str) -> str:
    """Return every setting of a run as `fiat` writes it beside the results."""
    files, bindings = FURTHER.get(run, ([], []))
    section = sections.Run if run.startswith("runs/") else sections.Experiment
    paths = [str(ROOT / file) for file in (*files, f"configs/{run}.gin")]
    with contextlib.chdir(ROOT):  # what a mixture's parts are read from
        config = Config(sections.SECTIONS, paths, bindings)
    mixture = config.build(sections.Mixture)
    if mixture.rates:
        return sections.mixture_as_gin(mixture, {part: config.build(section, part) for part in mixture.rates})
    return sections.as_gin(config.build(section))


@pytest.mark.parametrize("run", RUNS)
def test_the_resolved_settings_of_a_run_are_those_written_down(run):
    written = golden(run).read_text() if golden(run).exists() else ""
    changes = list(difflib.unified_diff(written.splitlines(), resolved(run).splitlines(), lineterm="", n=0))
    assert not changes, "\n".join([*changes, "where this is meant: .venv/bin/python tests/test_configs.py"])


def test_no_golden_text_is_of_a_run_that_is_gone():
    assert {path.name for path in GOLDEN.iterdir()} == {golden(run).name for run in RUNS}


@pytest.mark.parametrize("run", RUNS)
def test_the_files_of_the_project_that_a_run_names_are_there(run):
    config = Config(sections.SECTIONS, [str(golden(run))])
    for part in config.build(sections.Mixture).rates or [""]:
        assert (ROOT / config.build(sections.Run, part).prompts.file).is_file()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in RUNS:
        golden(name).write_text(resolved(name))
