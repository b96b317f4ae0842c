"""How every weight of each model lies on each mesh that ships, compared with tests/layouts/.

`.venv/bin/python tests/test_layouts.py` writes them anew.
"""

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from fiat_jax.config import Config
from fiat_jax.experiments.sections import SECTIONS
from fiat_jax.models.checkpoints import read_config
from fiat_jax.models.families import family_of
from fiat_jax.models.lora import LoraConfig
from fiat_jax.models.model import abstract_model
from fiat_jax.sharding import MeshConfig

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = Path(__file__).parent / "layouts"
MODELS = sorted(path.parent.name for path in (ROOT / "configs" / "shapes").glob("*/config.json"))
MESHES = sorted(path.stem for path in (ROOT / "configs" / "meshes").glob("*.gin"))
SLICE = re.compile(r"(\d+)(?:x(\d+))?$")  # what a preset's name says: devices, and slices of so many


def layout(model: str, mesh_name: str) -> str:
    """Return one line an array: its name, dtype and shape, on which mesh axes it lies, and its bytes on a device."""
    preset = ROOT / "configs" / "meshes" / f"{mesh_name}.gin"
    mesh = Config(SECTIONS, [str(preset)]).build(MeshConfig).abstract(devices_of(mesh_name))
    hf_config = read_config(ROOT / "configs" / "shapes" / model)
    family = family_of(hf_config, model)
    made = abstract_model(
        family.read_config(hf_config, model), mesh, lora=LoraConfig(rank=16), dtype="bfloat16", family=family
    )
    lines, totals = [], {}
    for kind, tree in (("tuned", made.trainable), ("frozen", made.frozen)):
        for name, array in named_arrays(tree):
            held = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
            totals[kind] = totals.get(kind, 0) + held
            axes = ", ".join("-" if axis is None else str(axis) for axis in array.sharding.spec)
            lines.append(f"{kind} {name}: {array.dtype.name}{list(array.shape)} on ({axes}), {held:,} bytes a device")
    head = f"{model} on {dict(mesh.shape)}: " + ", ".join(f"{kind} {total:,}" for kind, total in totals.items())
    return "\n".join([f"{head} bytes a device", *lines]) + "\n"


def named_arrays(tree) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), array


def devices_of(mesh_name: str) -> int:
    """Return how many devices a preset is for, which its name says."""
    found = SLICE.search(mesh_name)
    return math.prod(int(part) for part in found.groups() if part) if found else 1


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_lies_as_written_down(model, mesh):
    path = WRITTEN / mesh / f"{model}.txt"
    written = path.read_text() if path.exists() else ""
    changes = list(difflib.unified_diff(written.splitlines(), layout(model, mesh).splitlines(), lineterm="", n=0))
    assert not changes, "\n".join([*changes, "where this is meant: .venv/bin/python tests/test_layouts.py"])


def test_nothing_is_written_down_that_does_not_ship():
    assert {path.parent.name for path in WRITTEN.glob("*/*.txt")} == set(MESHES)
    assert {path.stem for path in WRITTEN.glob("*/*.txt")} == set(MODELS)


if __name__ == "__main__":
    for mesh_name in MESHES:
        (WRITTEN / mesh_name).mkdir(parents=True, exist_ok=True)
        for model_name in MODELS:
            (WRITTEN / mesh_name / f"{model_name}.txt").write_text(layout(model_name, mesh_name))
