"""`fiat init` and `fiat data split`."""

from fiat_jax.verbs.common import open_console


def init(args, bindings) -> int:
    """Draft a task and an instruction file."""
    from fiat_jax.tasks.draft import draft

    for path in draft(args.source, args.out, answer=args.answer):
        print(path)
    return 0


def data_split(args, bindings) -> int:
    """Divide a file into parts."""
    from fiat_jax.experiments.split import split_file

    split_file(args, open_console())
    return 0
