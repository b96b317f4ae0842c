"""`fiat train` and `fiat experiment`."""

import functools

from fiat_jax.errors import UserError
from fiat_jax.experiments import runtime, sections
from fiat_jax.experiments.cells_on_ray import make_cells_on_ray
from fiat_jax.experiments.dry_run import dry_run, runs_of
from fiat_jax.experiments.matrix import run_experiment, run_training
from fiat_jax.reasoning.shard import EVERYTHING, Shard
from fiat_jax.verbs.common import settings, start


def train(args, bindings) -> int:
    """Tune one model, on one task or on a mixture of several."""
    config = settings(args, bindings)
    mixture = config.build(sections.Mixture)
    if mixture.rates:
        return _train_mixture(args, mixture, {part: config.build(sections.Run, part) for part in mixture.rates})
    run = _run(config)
    console = start(args)
    if args.dry_run:
        console.print(sections.as_gin(run), highlight=False, markup=False)
        dry_run(run, console)
        return 0
    with runtime.recorded(args.workdir, sections.as_gin(run)):
        run_training(run, args.workdir, console)
    return 0


def _run(config):
    """Return the run that settings describe, with θ_β's weights where they name some."""
    native = config.build(sections.Native) if config.binds("Native") else None
    return config.build(sections.Run, native=native)


def _train_mixture(args, mixture, parts) -> int:
    from fiat_jax.experiments.mixture import run_mixture

    console, text = start(args), sections.mixture_as_gin(mixture, parts)
    if args.dry_run:
        console.print(text, highlight=False, markup=False)
        for part, run in parts.items():
            console.print(f"{part}, by itself:")
            dry_run(run, console)
        return 0
    with runtime.recorded(args.workdir, text):
        run_mixture(mixture, parts, args.workdir, console)
    return 0


def experiment(args, bindings) -> int:
    """Run a matrix of cells."""
    config = settings(args, bindings)
    if config.build(sections.Mixture).rates:
        raise UserError("Mixture.rates is for `fiat train`; an experiment compares paradigms on one task")
    experiment = config.build(sections.Experiment, run=_run(config))
    shard = Shard.parse(args.shard) if args.shard else EVERYTHING
    console = start(args)
    if args.dry_run:
        console.print(sections.as_gin(experiment), highlight=False, markup=False)
        dry_run(runs_of(experiment.run, experiment.paradigms), console, experiment.sizes)
        return 0
    engine = None
    if args.engine == "ray":
        if args.shard or experiment.processes > 1:
            raise UserError("--engine=ray divides the cells by itself; leave out --shard and Experiment.processes")
        options = config.build(sections.RayOptions)
        engine = functools.partial(make_cells_on_ray, options=options, console=console)
    with runtime.recorded(args.workdir, sections.as_gin(experiment)):
        run_experiment(experiment, args.workdir, console, shard, engine)
    return 0
