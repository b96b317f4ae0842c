"""`fiat VERB`: dispatch, nothing else; every verb imports what it needs when it is called."""

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fiat_jax.arguments import OTHER, make_parser
from fiat_jax.errors import EXIT_RESTARTABLE, EXIT_USER, Interrupted, UserError

GIN_FLAG = "--gin."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0, 2 for the user's mistake, 75 when interrupted and all is saved.

    A mistake of ours is an exception, with which Python ends the process with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    bindings = [a[len(GIN_FLAG) :] for a in arguments if a.startswith(GIN_FLAG)]
    parser, plain = make_parser(), [a for a in arguments if not a.startswith(GIN_FLAG)]
    args = parser.parse_args(plain)
    action = getattr(args, "action", None)
    if action and plain[1] != action:  # argparse would forget what stands before
        parser.error(f"say `fiat {args.verb} {action}` before its options")
    action = f"{args.verb}_{action}" if action else args.verb
    try:
        with _terminable():
            if bindings and "gin_file" not in args:
                raise UserError(f"this verb takes no settings: leave out {GIN_FLAG}{bindings[0]}")
            return VERBS[action](args, bindings)
    except UserError as error:
        print(f"fiat {args.verb}: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        if error.filename is None:  # not about a file: ours to explain
            raise
        print(f"fiat {args.verb}: {error.filename}: {error.strerror}; correct the path or its rights", file=sys.stderr)
        return EXIT_USER
    except Interrupted as error:
        print(f"fiat {args.verb}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"fiat {args.verb}: interrupted; the same command goes on from what is saved", file=sys.stderr)
    return EXIT_RESTARTABLE


@contextlib.contextmanager
def _terminable():
    """Let SIGTERM do what SIGINT does: files are closed on the way out."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _console(quiet: bool = False):
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), quiet=quiet)


def _start():
    """Join the run's other processes; return the console, on which process 0 speaks for all."""
    from fiat_jax.distributed import is_main
    from fiat_jax.experiments import runtime

    runtime.start()
    return _console(quiet=not is_main())


def _config(args: argparse.Namespace, bindings: list[str], files: Sequence[str] = (), scopes: Sequence[str] = ()):
    """Return the settings of all sections that a verb may have."""
    from fiat_jax.config import Config
    from fiat_jax.experiments import sections

    return Config(sections.SECTIONS, [*files, *args.gin_file], bindings, scopes)


def _init(args, bindings) -> int:
    from fiat_jax.tasks.draft import draft

    for path in draft(args.source, args.out, answer=args.answer):
        print(path)
    return 0


def _data_split(args, bindings) -> int:
    from fiat_jax.experiments.split import split_file

    split_file(args, _console())
    return 0


def _look(args, bindings):
    from fiat_jax.experiments import sections

    config = _config(args, bindings, [args.task])
    prompts = config.build(sections.Prompts, file=args.file)
    given = {"tokenizer": args.tokenizer} if args.tokenizer else {}
    return config, config.build(sections.PromptLook, prompts=prompts, **given)


def _prompt_lint(args, bindings) -> int:
    from fiat_jax.experiments.prompt import run_lint

    return 0 if run_lint(_look(args, bindings)[1], _console()) else EXIT_USER


def _prompt_render(args, bindings) -> int:
    from fiat_jax.experiments.prompt import run_render

    run_render(_look(args, bindings)[1], args.row, _console())
    return 0


def _prompt_try(args, bindings) -> int:
    from fiat_jax.experiments import sections
    from fiat_jax.experiments.prompt import run_try

    config, look = _look(args, bindings)
    run_try(look, config.build(sections.Endpoint), args.rows, _console())
    return 0


def _reason(args, bindings) -> int:
    from fiat_jax.errors import UserError
    from fiat_jax.experiments import asking, reason, sections
    from fiat_jax.reasoning.shard import EVERYTHING, Shard

    config = _config(args, bindings)
    if bool(args.files) == bool(args.backend):
        raise UserError("give either --import FILE or --backend=native or --backend=openai")
    if args.files:
        asking_alone = ("dry_run", "shard", "engine", "batch_out", "batch_in")
        given = [f"--{name}" for name in asking_alone if getattr(args, name)]
        if given:
            raise UserError(f"an import asks no model; leave out {', '.join(given)}")
        reason.import_files(config.build(sections.Import), args.files, _console())
        return 0
    if args.engine == "ray":
        return _reason_on_ray(args, config)
    shard = Shard.parse(args.shard) if args.shard else EVERYTHING
    job, _ = _job(args.backend, config, config.build(sections.Reason), shard)
    console = _console()
    if args.batch_out:
        args.batch_out.parent.mkdir(parents=True, exist_ok=True)
        asking.write_batch(job, args.batch_out, console)
    elif args.batch_in:
        asking.read_batch(job, args.batch_in, args.workdir, console)
    else:
        asking.ask(job, args.workdir, args.dry_run, console)
    return 0


def _reason_on_ray(args, config) -> int:
    from fiat_jax.errors import UserError
    from fiat_jax.experiments import sections
    from fiat_jax.experiments.on_ray import Work, ask_on_ray

    if args.shard or args.batch_out or args.batch_in:
        raise UserError("--engine=ray divides the rows by itself and asks live; leave out --shard and --batch_...")
    backend = config.build(sections.Endpoint if args.backend == "openai" else sections.Native)
    reason, mesh = config.build(sections.Reason), config.build(sections.MeshConfig)
    work = Work(reason, backend, mesh, args.workdir, str(Path.cwd()))
    ask_on_ray(work, config.build(sections.RayOptions), args.dry_run, _console())
    return 0


def _job(backend: str, config, reason, shard, scope: str = ""):
    """Return what a backend is asked, and the section that says which one; `scope` is before its settings' names."""
    from fiat_jax.experiments import asking, runtime, sections

    if backend == "openai":
        endpoint = config.build(sections.Endpoint, scope)
        return asking.endpoint_job(reason, endpoint, shard), endpoint
    runtime.start()
    native = config.build(sections.Native, scope)
    return asking.engine_job(reason, native, config.build(sections.MeshConfig, scope), shard), native


def _reason_compare(args, bindings) -> int:
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.compare import compare
    from fiat_jax.reasoning.shard import EVERYTHING

    config = _config(args, bindings, scopes=(OTHER,))
    reason, sides = config.build(sections.Reason), []
    for backend, scope in ((args.backend, ""), (args.other, OTHER)):
        own = reason if backend == "openai" else dataclasses.replace(reason, tokenizer="")  # an engine has its own
        sides.append(_job(backend, config, own, EVERYTHING, scope))
    (first, asked), (second, other) = sides
    text = f"{sections.as_gin(reason, asked)}\n{sections.as_gin(other, scope=OTHER)}"
    if args.dry_run:
        compare([first, second], args.rows, args.workdir, True, _console())
        return 0
    with runtime.recorded(args.workdir, text):
        compare([first, second], args.rows, args.workdir, False, _console())
    return 0


def _reason_verify(args, bindings) -> int:
    from fiat_jax.experiments import sections
    from fiat_jax.experiments.verify import verify

    store = args.store or _config(args, bindings).build(sections.Reasoning).store
    return 0 if verify(store, _console()) else EXIT_USER


def _train(args, bindings) -> int:
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.dry_run import dry_run
    from fiat_jax.experiments.matrix import run_training

    config = _config(args, bindings)
    mixture = config.build(sections.Mixture)
    if mixture.rates:
        return _train_mixture(args, mixture, {part: config.build(sections.Run, part) for part in mixture.rates})
    run = config.build(sections.Run)
    console = _start()
    if args.dry_run:
        console.print(sections.as_gin(run), highlight=False, markup=False)
        dry_run(run, console)
        return 0
    with runtime.recorded(args.workdir, sections.as_gin(run)):
        run_training(run, args.workdir, console)
    return 0


def _train_mixture(args, mixture, parts) -> int:
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.dry_run import dry_run
    from fiat_jax.experiments.mixture import run_mixture

    console, text = _start(), sections.mixture_as_gin(mixture, parts)
    if args.dry_run:
        console.print(text, highlight=False, markup=False)
        for part, run in parts.items():
            console.print(f"{part}, by itself:")
            dry_run(run, console)
        return 0
    with runtime.recorded(args.workdir, text):
        run_mixture(mixture, parts, args.workdir, console)
    return 0


def _experiment(args, bindings) -> int:
    from fiat_jax.errors import UserError
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.dry_run import dry_run, runs_of
    from fiat_jax.experiments.matrix import run_experiment

    config = _config(args, bindings)
    if config.build(sections.Mixture).rates:
        raise UserError("Mixture.rates is for `fiat train`; an experiment compares paradigms on one task")
    experiment = config.build(sections.Experiment)
    console = _start()
    if args.dry_run:
        console.print(sections.as_gin(experiment), highlight=False, markup=False)
        dry_run(runs_of(experiment.run, experiment.paradigms), console, experiment.sizes)
        return 0
    with runtime.recorded(args.workdir, sections.as_gin(experiment)):
        run_experiment(experiment, args.workdir, console)
    return 0


def _check_output(path: Path, source: str) -> None:
    """Refuse a file that could not be written, or that is the input, before there is anything to lose."""
    from fiat_jax.errors import UserError

    if path.is_dir():
        raise UserError(f"--out={path} is a folder; name the file to write")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--out={path} is the file that is read; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)


def _check_folder(path: Path) -> None:
    """Refuse a folder that holds something: files of two exports would be read as one."""
    from fiat_jax.errors import UserError

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out={path} is there and not an empty folder; name a new one")


def _bundle(args, bindings):
    """Return the bundle, its base where the settings say, the mesh, and where reasoning lies if they say so."""
    from fiat_jax.experiments import sections
    from fiat_jax.experiments.bundle import read_bundle

    config = _config(args, bindings)
    bundle = read_bundle(args.bundle)
    reasoning = config.overlay(bundle.reasoning) if config.binds("Reasoning") else None
    bundle = dataclasses.replace(bundle, model=config.overlay(bundle.model))
    return bundle, config.build(sections.MeshConfig), reasoning


def _evaluate(args, bindings) -> int:
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.answers import choose_split, evaluate, read_splits

    bundle, mesh, reasoning = _bundle(args, bindings)
    console, splits = _start(), read_splits(args.data)
    text = sections.as_gin(bundle.task, bundle.prompts, bundle.model, reasoning or bundle.reasoning, mesh)
    with runtime.recorded(args.workdir, text):
        evaluate(bundle, splits, choose_split(args.split, splits), reasoning, mesh, args.workdir, console)
    return 0


def _predict(args, bindings) -> int:
    from fiat_jax.experiments.answers import predict

    _check_output(args.out, args.source)
    bundle, mesh, reasoning = _bundle(args, bindings)
    predict(bundle, args.source, reasoning, mesh, args.out, _start())
    return 0


def _export(args, bindings) -> int:
    from fiat_jax.experiments.export import export

    _check_folder(args.out)
    bundle, mesh, _ = _bundle(args, bindings)
    export(bundle, args.format, args.out, mesh, _start())
    return 0


def _serve(args, bindings) -> int:
    from fiat_jax.errors import UserError
    from fiat_jax.experiments import runtime, sections
    from fiat_jax.experiments.bundle import read_bundle
    from fiat_jax.experiments.serve import Asked, named_bundles, serve

    config = _config(args, bindings, scopes=["tau"])
    native, endpoint = (config.binds(name, "") for name in ("Native", "Endpoint"))
    if native and endpoint:
        raise UserError("both Native and Endpoint are set: which of them has the large model? Leave the other one out")

    def read(path: str):
        bundle = read_bundle(path)
        return dataclasses.replace(bundle, model=config.overlay(bundle.model))

    asked = Asked(
        serve=config.build(sections.Serve),
        bundles=named_bundles(args.bundle, read),
        native=config.build(sections.Native) if native else None,
        endpoint=config.build(sections.Endpoint) if endpoint else None,
        tau=config.build(sections.Endpoint, "tau") if config.binds("Endpoint", "tau") else None,
        mesh=config.build(sections.MeshConfig),
    )
    runtime.start()
    serve(asked, _console())
    return 0


def _demo(args, bindings) -> int:
    from fiat_jax.config import Config
    from fiat_jax.demo.run import SETTINGS, DemoConfig, run_demo
    from fiat_jax.demo.task import TaskConfig
    from fiat_jax.experiments.sections import SECTIONS

    files = [str(SETTINGS["full" if args.full else "demo"]), *args.gin_file]
    config = Config({**SECTIONS, "World": TaskConfig, "Demo": DemoConfig}, files, bindings)
    run_demo(args.workdir, _console(), config.build(DemoConfig))
    return 0


def _demo_build(args, bindings) -> int:
    from fiat_jax.demo.build import build

    args.out.mkdir(parents=True, exist_ok=True)
    build(args.out, _console())
    return 0


VERBS = {
    "init": _init,
    "data_split": _data_split,
    "prompt_lint": _prompt_lint,
    "prompt_render": _prompt_render,
    "prompt_try": _prompt_try,
    "reason": _reason,
    "reason_compare": _reason_compare,
    "reason_verify": _reason_verify,
    "train": _train,
    "experiment": _experiment,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "serve": _serve,
    "demo": _demo,
    "demo_build": _demo_build,
}
