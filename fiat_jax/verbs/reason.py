"""`fiat reason` and its actions `compare` and `verify`."""

import dataclasses
from pathlib import Path

from fiat_jax.arguments import OTHER
from fiat_jax.errors import EXIT_USER, UserError
from fiat_jax.experiments import runtime, sections
from fiat_jax.verbs.common import open_console, settings


def reason(args, bindings) -> int:
    """Fill the reasoning store: by import, by an endpoint, by an engine here or on Ray."""
    from fiat_jax.experiments import asking
    from fiat_jax.experiments.reason import import_files
    from fiat_jax.reasoning.shard import EVERYTHING, Shard

    config = settings(args, bindings)
    if bool(args.files) == bool(args.backend):
        raise UserError("give either --import FILE or --backend=native or --backend=openai")
    if args.files:
        asking_alone = ("dry_run", "shard", "engine", "batch_out", "batch_in")
        given = [f"--{name}" for name in asking_alone if getattr(args, name)]
        if given:
            raise UserError(f"an import asks no model; leave out {', '.join(given)}")
        import_files(config.build(sections.Import), args.files, open_console())
        return 0
    if args.engine == "ray":
        return _reason_on_ray(args, config)
    shard = Shard.parse(args.shard) if args.shard else EVERYTHING
    if args.backend == "native":
        runtime.start(args.until_end)
    job, _ = _job(args.backend, config, config.build(sections.Reason), shard)
    console = open_console()
    if args.batch_out:
        args.batch_out.parent.mkdir(parents=True, exist_ok=True)
        asking.write_batch(job, args.batch_out, console)
    elif args.batch_in:
        asking.read_batch(job, args.batch_in, args.workdir, console)
    else:
        asking.ask(job, args.workdir, args.dry_run, console)
    return 0


def _reason_on_ray(args, config) -> int:
    from fiat_jax.experiments.on_ray import Work, ask_on_ray

    if args.shard or args.batch_out or args.batch_in:
        raise UserError("--engine=ray divides the rows by itself and asks live; leave out --shard and --batch_...")
    backend = config.build(sections.Endpoint if args.backend == "openai" else sections.Native)
    reason, mesh = config.build(sections.Reason), config.build(sections.MeshConfig)
    work = Work(reason, backend, mesh, args.workdir, str(Path.cwd()))
    ask_on_ray(work, config.build(sections.RayOptions), args.dry_run, open_console())
    return 0


def _job(backend: str, config, reason, shard, scope: str = ""):
    """Return what a backend is asked, and the section that says which one; `scope` is before its settings' names."""
    from fiat_jax.experiments import asking

    if backend == "openai":
        endpoint = config.build(sections.Endpoint, scope)
        return asking.endpoint_job(reason, endpoint, shard), endpoint
    native = config.build(sections.Native, scope)
    return asking.engine_job(reason, native, config.build(sections.MeshConfig, scope), shard), native


def reason_compare(args, bindings) -> int:
    """Ask two backends about the same rows."""
    from fiat_jax.experiments.compare import compare
    from fiat_jax.reasoning.shard import EVERYTHING

    config = settings(args, bindings, scopes=(OTHER,))
    reason, sides = config.build(sections.Reason), []
    if "native" in (args.backend, args.other):
        runtime.start(args.until_end)
    for backend, scope in ((args.backend, ""), (args.other, OTHER)):
        own = reason if backend == "openai" else dataclasses.replace(reason, tokenizer="")  # an engine has its own
        sides.append(_job(backend, config, own, EVERYTHING, scope))
    (first, asked), (second, other) = sides
    text = f"{sections.as_gin(reason, asked)}\n{sections.as_gin(other, scope=OTHER)}"
    if args.dry_run:
        compare([first, second], args.rows, args.workdir, True, open_console())
        return 0
    with runtime.recorded(args.workdir, text):
        compare([first, second], args.rows, args.workdir, False, open_console())
    return 0


def reason_verify(args, bindings) -> int:
    """Read a store again."""
    from fiat_jax.experiments.verify import verify

    store = args.store or settings(args, bindings).build(sections.Reasoning).store
    return 0 if verify(store, open_console()) else EXIT_USER
