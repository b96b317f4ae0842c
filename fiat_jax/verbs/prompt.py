"""`fiat prompt lint`, `render`, `try`, `diff`, `score` and `draft`."""

import dataclasses

from fiat_jax.errors import EXIT_USER, UserError
from fiat_jax.experiments import runtime, sections
from fiat_jax.experiments.prompt import run_lint, run_render, run_try
from fiat_jax.verbs.common import open_console, settings


def _look(args, bindings):
    config = settings(args, bindings, [args.task])
    prompts = config.build(sections.Prompts, file=args.file)
    given = {"tokenizer": args.tokenizer} if getattr(args, "tokenizer", "") else {}
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


def prompt_diff(args, bindings) -> int:
    """Say what two files tell the models differently; the exit status is 0 whatever it is."""
    from fiat_jax.experiments.feed import read_instructions
    from fiat_jax.prompts.diff import diff
    from fiat_jax.prompts.show import show_diff

    config, look = _look(args, bindings)
    other = config.build(sections.Prompts, file=args.other)
    show_diff(diff(read_instructions(look.prompts, look.task), read_instructions(other, look.task)), open_console())
    return 0


def _job(args, config, prompts, task, split):
    """Return the job that asks θ_β about a split with an instruction file."""
    from fiat_jax.experiments import asking

    reason = config.build(sections.Reason, task=task, prompts=prompts, splits=(split,))
    if args.backend == "openai":
        return asking.endpoint_job(reason, config.build(sections.Endpoint))
    return asking.engine_job(reason, config.build(sections.Native), config.build(sections.MeshConfig))


def prompt_score(args, bindings) -> int:
    """Rank candidates on validation rows."""
    from fiat_jax.experiments.prompt_score import for_scoring, print_cost, score_prompts

    config = settings(args, bindings, [args.task])
    if args.rows < 2:
        raise UserError(f"--rows {args.rows}: candidates are compared on two rows or more")
    console, look = open_console(), config.build(sections.PromptLook)
    task = for_scoring(look.task, args.split, look.training_splits)
    runtime.start(args.until_end)
    run = dataclasses.replace(config.build(sections.Run), task=task)
    if args.split == run.data.report_split:
        console.print(
            f"warning: {args.split!r} is also what is reported (Data.report_split): what is chosen here will look "
            "better there than it is; report it on rows of another split",
            highlight=False,
        )
    jobs = [_job(args, config, dataclasses.replace(run.prompts, file=file), task, args.split) for file in args.files]
    jobs = [dataclasses.replace(job, every_row=job.every_row[: args.rows]) for job in jobs]
    print_cost(jobs, console)
    if args.dry_run:
        return 0
    with runtime.recorded(args.workdir, sections.as_gin(run)):
        score_prompts(run, jobs, args.workdir, console)
    return 0


def prompt_draft(args, bindings) -> int:
    """Have θ_β write rationales for chosen training rows."""
    from fiat_jax.experiments.prompt_draft import chosen_rows, draft_exemplars

    config, look = _look(args, bindings)
    if args.split not in look.training_splits:
        known = ", ".join(look.training_splits)
        raise UserError(f"--split {args.split}: exemplars come from training rows alone ({known})")
    if args.out.exists():
        raise UserError(f"--out={args.out} is there already; what a person has reviewed is not overwritten")
    if args.backend == "native":
        runtime.start(args.until_end)
    job = _job(args, config, look.prompts, look.task, args.split)
    rows = chosen_rows(job.every_row, look.task.id_field, args.rows.split(","), args.split)
    draft_exemplars(job, rows, args.out, open_console())
    return 0
