"""What takes a trained bundle: `fiat evaluate`, `predict`, `export` and `serve`."""

import dataclasses
from pathlib import Path

from fiat_jax.errors import UserError
from fiat_jax.experiments import answers, runtime, sections
from fiat_jax.experiments.bundle import read_bundle
from fiat_jax.verbs.common import open_console, settings, start


def _check_output(path: Path, source: str) -> None:
    """Refuse a file that could not be written, or that is the input, before there is anything to lose."""
    if path.is_dir():
        raise UserError(f"--out={path} is a folder; name the file to write")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--out={path} is the file that is read; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)


def _check_folder(path: Path) -> None:
    """Refuse a folder that holds something: files of two exports would be read as one."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out={path} is there and not an empty folder; name a new one")


def _bundle(args, bindings):
    """Return the bundle, its base where the settings say, the mesh, and where reasoning lies if they say so."""
    config = settings(args, bindings)
    bundle = read_bundle(args.bundle)
    reasoning = config.overlay(bundle.reasoning) if config.binds("Reasoning") else None
    bundle = dataclasses.replace(bundle, model=config.overlay(bundle.model))
    return bundle, config.build(sections.MeshConfig), reasoning


def evaluate(args, bindings) -> int:
    """Score a bundle on a split."""
    bundle, mesh, reasoning = _bundle(args, bindings)
    console, splits = start(args), answers.read_splits(args.data)
    split = answers.choose_split(args.split, splits)
    text = sections.as_gin(bundle.task, bundle.prompts, bundle.model, reasoning or bundle.reasoning, mesh)
    with runtime.recorded(args.workdir, text):
        answers.evaluate(bundle, splits, split, reasoning, mesh, args.workdir, console)
    return 0


def predict(args, bindings) -> int:
    """Answer the rows of a file."""
    _check_output(args.out, args.source)
    bundle, mesh, reasoning = _bundle(args, bindings)
    answers.predict(bundle, args.source, reasoning, mesh, args.out, start(args))
    return 0


def export(args, bindings) -> int:
    """Write a bundle for other programs."""
    from fiat_jax.experiments.export import export as write

    _check_folder(args.out)
    bundle, mesh, _ = _bundle(args, bindings)
    write(bundle, args.format, args.out, mesh, start(args))
    return 0


def serve(args, bindings) -> int:
    """Answer over HTTP."""
    from fiat_jax.experiments.serve import Asked, named_bundles
    from fiat_jax.experiments.serve import serve as run

    config = settings(args, bindings, scopes=["tau"])
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
    runtime.start(args.until_end)
    run(asked, open_console())
    return 0
