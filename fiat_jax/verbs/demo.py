"""`fiat demo` and `fiat demo build`."""

from fiat_jax.verbs.common import open_console


def demo(args, bindings) -> int:
    """Run the whole of FIAT on the generated task."""
    from fiat_jax.config import Config
    from fiat_jax.demo.run import SETTINGS, DemoConfig, run_demo
    from fiat_jax.demo.task import TaskConfig
    from fiat_jax.experiments.sections import SECTIONS

    files = [str(SETTINGS["full" if args.full else "demo"]), *args.gin_file]
    config = Config({**SECTIONS, "World": TaskConfig, "Demo": DemoConfig}, files, bindings)
    run_demo(args.workdir, open_console(), config.build(DemoConfig))
    return 0


def demo_build(args, bindings) -> int:
    """Make the demo's models anew."""
    from fiat_jax.demo.build import build

    args.out.mkdir(parents=True, exist_ok=True)
    build(args.out, open_console())
    return 0
