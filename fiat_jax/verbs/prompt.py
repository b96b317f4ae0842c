"""`fiat prompt lint`, `render` and `try`."""

from fiat_jax.errors import EXIT_USER
from fiat_jax.experiments import sections
from fiat_jax.experiments.prompt import run_lint, run_render, run_try
from fiat_jax.verbs.common import open_console, settings


def _look(args, bindings):
    config = settings(args, bindings, [args.task])
    prompts = config.build(sections.Prompts, file=args.file)
    given = {"tokenizer": args.tokenizer} if args.tokenizer else {}
    return config, config.build(sections.PromptLook, prompts=prompts, **given)


def prompt_lint(args, bindings) -> int:
    """Say what is wrong in an instruction file."""
    return 0 if run_lint(_look(args, bindings)[1], open_console()) else EXIT_USER


def prompt_render(args, bindings) -> int:
    """Show one row as θ_τ reads it."""
    run_render(_look(args, bindings)[1], args.row, open_console())
    return 0


def prompt_try(args, bindings) -> int:
    """Ask θ_β about a few rows."""
    config, look = _look(args, bindings)
    run_try(look, config.build(sections.Endpoint), args.rows, open_console())
    return 0
