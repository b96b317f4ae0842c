"""A run as it lies in its working directory; nothing else is read."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fiat_jax.errors import UserError
from fiat_jax.evaluation.predictions import Prediction, read_predictions
from fiat_jax.experiments.files import ALL, AT, ROWS, SCHEMA, file_hash, paradigm_of

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)  # one is itself alone
class Finished:
    """A finished run: its results, the reported rows by id ({} where it left none), its settings.

    `name` tells it from another one.
    """

    name: str
    workdir: Path
    results: Mapping[str, Any]
    rows: Mapping[str, Record]
    settings: str

    @functools.cached_property
    def systems(self) -> list[Record]:
        """Scores of systems over their seeds; of a verb that has no such statistics, those of its cells."""
        if "statistics" in self.results:
            return self.results["statistics"]["systems"]
        return [{**row, "seeds": [row["seed"]], "sd_seeds": None} for row in self.results["rows"]]

    @functools.cached_property
    def differences(self) -> list[Record]:
        """Differences of systems over their seeds; none where a verb compares nothing."""
        return self.results.get("statistics", {}).get("differences", [])

    @functools.cached_property
    def metrics(self) -> list[str]:
        """The names of metrics, the main one first."""
        return list(dict.fromkeys(row["metric"] for row in self.systems))

    @functools.cached_property
    def languages(self) -> list[str]:
        """The languages of the reported rows."""
        found = dict.fromkeys(row["language"] for row in self.results["rows"])
        return [name for name in found if name != ALL]

    @functools.cached_property
    def cells(self) -> dict[str, Record]:
        """Cell → what is known of it: the fields that its rows have in common, and its facts."""
        details = self.results.get("details", {}).get("cells", {})
        known = {row["cell"]: row for row in self.results["rows"]}
        return {name: {**row, **details.get(name, {})} for name, row in known.items()}

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The training sizes."""
        return sorted({row["size"] for row in self.systems if row["size"]})

    def tau_name(self, theta_tau: str) -> str:
        """Return what a θ_τ is called: by `Experiment.theta_taus` where there are several, else by its directory."""
        named = (cell["paradigm"] or "" for cell in self.cells.values() if cell["theta_tau"] == theta_tau)
        return next((name.partition(AT)[2] for name in named if AT in name), PurePath(theta_tau).name)

    def seeds_of(self, paradigm: str, size: int | None, theta_tau: str | None = None) -> dict[int, str]:
        """Return the seeds of a system and their cells; one that is not trained is of every size.

        `paradigm` may be the name of the system, which names its θ_τ where there are several.
        """
        return {
            cell["seed"]: name
            for name, cell in self.cells.items()
            if paradigm in (cell["paradigm"], paradigm_of(cell["paradigm"] or ""))
            and (cell["size"] == size or not cell["size"])
            and (theta_tau is None or cell["theta_tau"] in (None, theta_tau))
        }

    @functools.cache  # noqa: B019  a report reads a run once and ends
    def predictions(self, cell: str) -> list[Prediction]:
        """Return a cell's predictions.

        Raises:
            UserError: they are not those that results.json was written of.
        """
        path = self.workdir / "predictions" / f"{cell}.jsonl"
        recorded = _hashes(self.results["inputs"]).get(cell)
        found = read_predictions(path)
        if recorded and file_hash(path) != recorded:
            raise UserError(f"{path} is not the file that results.json was written of; run the same command again")
        return found


def read_run(workdir: Path, name: str) -> Finished:
    """Read what a verb left behind.

    Raises:
        UserError: no results.json there, one of another schema, or a damaged file.
    """
    path = workdir / "results.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} has no results.json: name the --workdir of a finished train, experiment or evaluate"
        )
    try:
        results = json.loads(path.read_text("utf-8"))
        schema, rows = results["schema"], results["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); run the command that wrote it again") from None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, and this version reads {SCHEMA}; run the experiment again")
    if not rows:
        raise UserError(f"{path} has no rows to report")
    settings = workdir / "config.gin"
    return Finished(
        name,
        workdir,
        results,
        _read_rows(workdir / ROWS, results),
        settings.read_text("utf-8") if settings.is_file() else "",
    )


def _read_rows(path: Path, results: Mapping[str, Any]) -> dict[str, Record]:
    """Return the rows by id; {} of a run that left none."""
    recorded = results["inputs"].get("rows", {}).get("sha256")
    if recorded is None:
        return {}
    if not path.is_file() or file_hash(path) != recorded:
        raise UserError(f"{path} is not the file that results.json was written of; run the same command again")
    lines = path.read_bytes().split(b"\n")  # str.splitlines would also split at U+2028 inside a text
    return {row["id"]: row for row in (json.loads(line) for line in lines if line)}


def _hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return cell → sha256 of its predictions; those of a mixture are told by part."""
    if "predictions" in inputs:
        return dict(inputs["predictions"])
    parts: Sequence[Any] = [part for part in inputs.values() if isinstance(part, Mapping)]
    return {cell: digest for part in parts for cell, digest in part.get("predictions", {}).items()}
