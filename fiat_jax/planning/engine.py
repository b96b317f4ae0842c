"""The plan of writing: the programs of the engine that θ_β, or a served model, runs."""

import contextlib
import dataclasses
from typing import Any

from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.memory import prefix_bytes
from fiat_jax.inference.programs import compile_programs
from fiat_jax.models.attention import PREFIX_BLOCK, PREFIX_LOOP, Prefix, prefix_block
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model, ModelConfig
from fiat_jax.planning import cautions
from fiat_jax.planning.compiled import Compiler, DoesNotFit
from fiat_jax.planning.plan import DECODE, PlanConfig, Program, examine, model_of, target_json
from fiat_jax.planning.target import Target
from fiat_jax.planning.train import expert_trips
from fiat_jax.planning.useful import DECODE_FORMULA, useful
from fiat_jax.reasoning.native import Native, engine_shapes
from fiat_jax.sharding import DECODE as RULES
from fiat_jax.sharding import MeshConfig, axis_size

READ_PREFIX = "read_prefix"


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """What is asked: which model writes, with how many slots, on which mesh."""

    plan: PlanConfig
    native: Native
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True)
class Written:
    """What is found: every program, and how many rows an hour that could be.

    Args:
        kept: bytes a device of prefixes that lie in memory besides a program's arguments.
        shapes: of the engine.
    """

    asked: EnginePlan
    target: dict[str, Any]
    programs: dict[str, Program]
    shapes: EngineConfig
    kept: int
    useful_flops: float | None  # of one token of all slots
    attention: str

    @property
    def fits(self) -> bool | None:
        """Whether every program fits beside what is kept."""
        memory = self.target["memory"]
        room = None if memory is None else memory - self.kept
        found = [program.fits(room) for program in self.programs.values()]
        return False if False in found else None if None in found else DECODE in self.programs

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all slots that could be decoded in a second."""
        line = self._line(DECODE)
        return None if line is None else self.shapes.slots / line

    @property
    def rows_per_hour(self) -> float | None:
        """Requests whose prompts could be read and answers written in an hour, one program after the other."""
        reading, writing = self._line(f"admit_{self.bucket}"), self._line(DECODE)
        if reading is None or writing is None:
            return None
        row = reading / self.shapes.prefill_rows + self.asked.plan.new_tokens * writing / self.shapes.slots
        return 3600 / row

    @property
    def bucket(self) -> int:
        """The length to which a prompt is padded."""
        return next(n for n in self.shapes.buckets if n >= self.asked.plan.prompt_tokens)

    @property
    def mfu(self) -> float | None:
        """The share of the chips' peak that useful operations take while decoding at that rate."""
        line = self._line(DECODE)
        if line is None or self.useful_flops is None:
            return None
        return self.useful_flops / (self.target["chip"]["flops"] * self.target["devices"] * line)

    def _line(self, name: str) -> float | None:
        found = self.programs.get(name)
        return None if found is None or found.roofline is None else found.roofline.seconds

    def as_json(self) -> dict[str, Any]:
        """Return it for results.json."""
        memory = self.target["memory"]
        room = None if memory is None else memory - self.kept
        return {
            "kind": "engine",
            "attention": self.attention,
            "model": self.asked.native.path,
            "settings": {**dataclasses.asdict(self.asked.plan), "native": dataclasses.asdict(self.asked.native)},
            "target": self.target,
            "fits": self.fits,
            "kept_besides": self.kept,
            "programs": {name: program.as_json(room) for name, program in self.programs.items()},
            "tokens_per_second": self.tokens_per_second,
            "rows_per_hour": self.rows_per_hour,
            "mfu": self.mfu,
            "useful_flops": self.useful_flops,
            "formula": DECODE_FORMULA,
        }


def plan_engine(asked: EnginePlan, target: Target, compiler: Compiler) -> Written:
    """Compile the programs of an engine and count them.

    Where one does not fit that others wait for, those are not there.
    """
    mesh = target.mesh(asked.mesh)
    plan, native = asked.plan, asked.native
    model = model_of(ModelConfig(native.path, native.dtype), mesh, None, tuned=False, rules=RULES)
    prefix = plan.prefix_tokens if isinstance(model.config, DecoderConfig) else 0
    shapes = engine_shapes(native, plan.prompt_tokens + plan.new_tokens, prefix, axis_size(mesh, RULES.batch))
    compiler.found.clear()
    with contextlib.suppress(DoesNotFit):
        compile_programs(model, -1, shapes, compiler.compile_or_read)
    said = (*cautions.of_arguments((model.trainable, model.frozen)), *cautions.of_layout(model))
    programs = {}
    for name, facts in compiler.found.items():
        rows = _rows(name, shapes)
        trips = {
            **_loops(model, shapes, name, rows),
            **expert_trips(model, max(1, rows // axis_size(mesh, RULES.batch))),
        }
        passes, runs = (0, shapes.block) if name == DECODE else (1, 1)
        programs[name] = examine(facts, target, model, trips=trips, said=said, passes=passes, runs=runs)
    return Written(
        asked,
        target_json(target, mesh),
        programs,
        shapes,
        prefix_bytes(model, prefix),
        _useful(model, plan, shapes),
        str(model.build.kernel),
    )


def _rows(name: str, shapes: EngineConfig) -> int:
    """Return how many tokens a program reads at once, of all rows."""
    if name == READ_PREFIX:
        return PREFIX_BLOCK
    return shapes.slots if name == DECODE else shapes.prefill_rows * int(name.removeprefix("admit_"))


def _loops(model: Model, shapes: EngineConfig, name: str, rows: int) -> dict[str, float]:
    """Return the trips of decoding as many tokens as one call does, and of reading a prefix that is full."""
    c, loops = model.config, {"jit(decode)/while": float(shapes.block)}
    if isinstance(c, DecoderConfig) and shapes.prefix_length:
        capacity = Prefix.capacity(shapes.prefix_length)
        loops[f"{PREFIX_LOOP}/while"] = capacity / prefix_block(rows * c.queries_per_kv_head, capacity)
    return loops


def _useful(model: Model, plan: PlanConfig, shapes: EngineConfig) -> float | None:
    needed = useful(model)
    if needed is None:
        return None
    return shapes.slots * needed.writing(plan.prefix_tokens + plan.prompt_tokens + plan.new_tokens / 2)
