"""`fiat plan`: what a run would need and how fast it could be, before a machine is rented."""

import os
import time

from fiat_jax.errors import UserError
from fiat_jax.verbs.common import open_console

WIDTH = 110  # of the tables, where nobody watches a terminal


def plan(args, bindings) -> int:
    """Compile the programs of a run for a machine, and say whether they fit and how fast they could be."""
    if args.topology:
        from fiat_jax.planning.target import ENVIRONMENT

        os.environ.update(ENVIRONMENT)
        os.environ.pop("XLA_FLAGS", None)  # libtpu ends the process over a flag of another backend's
    import jax

    from fiat_jax.config import Config
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.results import write_results
    from fiat_jax.planning.plan import PlanConfig, compiler_for
    from fiat_jax.planning.report import show, show_search
    from fiat_jax.planning.target import local, slice_of

    known = {**sections.SECTIONS, "Plan": PlanConfig}
    config = Config(known, args.gin_file, bindings)
    asked = _asked(config, sections, PlanConfig)
    console, begun = open_console(), time.monotonic()
    console.width = max(console.width, WIDTH)
    runtime.start()
    if args.topology:
        jax.config.update("jax_enable_compilation_cache", False)  # no device here could load what it keeps
    target = slice_of(args.topology, asked.mesh.slices) if args.topology else local()
    parts = [getattr(asked, name) for name in asked.__dataclass_fields__]
    with runtime.recorded(args.workdir, sections.as_gin(*parts, known=known)):
        told = lambda text: console.print(text, highlight=False)  # noqa: E731
        compiler = compiler_for(target, args.workdir / "programs", told)
        details, found = _run(asked, target, compiler, args.search, told)
        inputs = {"config": _config_hash(asked), "topology": target.name}
        path = write_results(
            args.workdir, "plan", inputs=inputs, rows=[], seconds=time.monotonic() - begun, details=details
        )
    show(details["plan"], console)
    if found:
        show_search(found, console)
    console.print(f"results: {path}", highlight=False)
    return 0


def _asked(config, sections, kind):
    """Return what is planned: training where Model is set, writing where Native is."""
    from fiat_jax.models.lora import LoraConfig
    from fiat_jax.models.model import ModelConfig
    from fiat_jax.planning.engine import EnginePlan
    from fiat_jax.planning.train import TrainPlan
    from fiat_jax.training.config import TrainConfig

    train, write = config.binds("Model"), config.binds("Native")
    if train == write:
        both = "both Model and Native are set" if train else "neither Model nor Native is set"
        raise UserError(
            f"{both}: give --gin.Model.path=DIRECTORY to plan its training, or --gin.Native.path=DIRECTORY to plan the "
            "engine that writes with it; of a directory config.json is enough, as in configs/shapes/"
        )
    plan, mesh = config.build(kind), config.build(sections.MeshConfig)
    if write:
        return EnginePlan(plan, config.build(sections.Native), mesh)
    return TrainPlan(plan, config.build(ModelConfig), config.build(LoraConfig), config.build(TrainConfig), mesh)


def _run(asked, target, compiler, searching: bool, told):
    """Return the details of results.json, and the ranking where one is asked for."""
    from fiat_jax.planning.engine import EnginePlan, plan_engine
    from fiat_jax.planning.plan import read_shape
    from fiat_jax.planning.search import search
    from fiat_jax.planning.train import plan_training

    def run(one) -> dict:
        made = (
            plan_engine(one, target, compiler) if isinstance(one, EnginePlan) else plan_training(one, target, compiler)
        )
        return made.as_json()

    if not searching:
        return {"plan": run(asked)}, []
    path = asked.native.path if isinstance(asked, EnginePlan) else asked.model.path
    found = search(asked, target, read_shape(path)[0], run, told)
    if found[0].found is None:
        raise UserError(f"no mesh of {target.name} can be planned: {found[0].why_not}")
    return {"plan": found[0].found, "search": [one.as_json() for one in found]}, found


def _config_hash(asked) -> dict:
    """Return the model's config.json, and its hash."""
    from fiat_jax.experiments.results import source_of

    path = getattr(asked, "native", None) or asked.model
    return source_of(f"{path.path}/config.json")
