"""`fiat report`."""

from fiat_jax.errors import UserError
from fiat_jax.verbs.common import open_console


def report(args, bindings) -> int:
    """Write what runs left behind as a page or as tables."""
    from fiat_jax.experiments.report.assemble import write_report
    from fiat_jax.experiments.report.training import Rates
    from fiat_jax.reasoning.cost import Prices

    asked = args.price_prompt, args.price_completion
    if (asked[0] is None) != (asked[1] is None):
        raise UserError("--price_prompt and --price_completion go together: θ_β's price has two parts")
    if any(price is not None and price < 0 for price in (*asked, args.price_hour)):
        raise UserError("a price is 0 or more")
    prices = None if None in asked else Prices(*asked, cached=asked[0])
    found = write_report(args.workdir, args.out, Rates(prices, args.price_hour), args.rows)
    console = open_console()
    for one in found.left_out:
        console.print(f"left out: {one.title}: {one.reason}", highlight=False, markup=False)
    for path in args.out:
        console.print(f"report: {path}", highlight=False, markup=False)
    return 0
