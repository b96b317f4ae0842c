"""The verbs of `fiat` and their arguments; settings are gin's, and not here."""

import argparse
from pathlib import Path

OTHER = "other"  # before the settings of the second backend that `fiat reason compare` asks


def _place(text: str) -> Path | str:
    """Return a local path, or a URL as it is: a Path would take one of its slashes away."""
    return text if "://" in text else Path(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line but `--gin.NAME=VALUE`."""
    parser = argparse.ArgumentParser(
        prog="fiat",
        allow_abbrev=False,  # `--gin X` would be --gin_file
        description="Fuse in-context learning with fine-tuning: a large model reasons, a small one is tuned on it.",
        epilog="Settings come from --gin_file=FILE (repeatable) and --gin.NAME=VALUE, e.g. --gin.Train.epochs=3.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, parent=verbs, gin: bool = True, workdir: bool = False) -> argparse.ArgumentParser:
        made = parent.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if gin:
            made.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="settings; repeatable")
        if workdir:
            made.add_argument("--workdir", type=_place, required=True, help="where results are written and resumed")
            made.add_argument("--dry_run", action="store_true", help="show what would be done, then stop")
        return made

    init = verb("init", "draft a task and an instruction file from a data file", gin=False)
    init.add_argument("source", help="JSONL, TSV or CSV file")
    init.add_argument("--out", default=".", help="directory of the two files")
    init.add_argument("--answer", help="the field with the right answer")

    data = verbs.add_parser("data", help="work on data files").add_subparsers(dest="action", required=True)
    split = verb("split", "divide a file into splits, folds or nested subsets", data, gin=False)
    split.add_argument("source", help="JSONL, TSV or CSV file")
    split.add_argument("--out", required=True, help="directory of the parts")
    split.add_argument("--shares", default="train=0.8,validation=0.1,test=0.1", help="part=share, ...")
    split.add_argument("--folds", type=int, help="k folds instead of parts")
    split.add_argument("--sizes", help="nested subsets of these sizes instead of parts: 200,1000")
    split.add_argument("--stratify", default="", help="fields with the same shares in each part: lang,answer")
    split.add_argument("--group", help="rows that agree in this field stay together")
    split.add_argument("--seed", type=int, default=0, help="another seed is another division")

    prompt = verbs.add_parser("prompt", help="look at an instruction file").add_subparsers(dest="action", required=True)
    for name, summary in (
        ("lint", "what is wrong in an instruction file, with token counts"),
        ("render", "one row as the tuned model reads it, with tokens and loss mask"),
        ("try", "ask the large model about a few rows"),
    ):
        made = verb(name, summary, prompt)
        made.add_argument("file", help="instruction file (YAML)")
        made.add_argument("--task", required=True, metavar="FILE.gin", help="the task's settings")
        made.add_argument("--tokenizer", default="", help="directory of the tokenizer that counts")
        if name == "render":
            made.add_argument("--row", type=int, default=0, help="its place in the split, from 0")
        if name == "try":
            made.add_argument("--rows", type=int, default=20, help="how many, from the first")

    made = verb("diff", "what two instruction files tell the models differently", prompt)
    made.add_argument("file", help="instruction file (YAML)")
    made.add_argument("other", help="the one to compare it with")
    made.add_argument("--task", required=True, metavar="FILE.gin", help="the task's settings")
    backends = ["native", "openai"]
    made = verb("score", "rank instruction files on validation rows, before any training", prompt, workdir=True)
    made.add_argument("files", nargs="+", help="instruction files (YAML)")
    made.add_argument("--task", required=True, metavar="FILE.gin", help="the task's settings")
    made.add_argument("--backend", choices=backends, required=True, help="who asks θ_β, as in `fiat reason`")
    made.add_argument("--split", default="validation", help="whose rows; never test")
    made.add_argument("--rows", type=int, default=200, help="how many of them, from the first")
    made = verb("draft", "have the large model write rationales for chosen rows, for a person to review", prompt)
    made.add_argument("file", help="instruction file (YAML)")
    made.add_argument("--task", required=True, metavar="FILE.gin", help="the task's settings")
    made.add_argument("--backend", choices=backends, required=True, help="who asks θ_β, as in `fiat reason`")
    made.add_argument("--rows", required=True, metavar="ID,ID,...", help="ids of training rows")
    made.add_argument("--split", default="train", help="the training split that they are of")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.yaml", help="the exemplars")

    reason = verb("reason", "fill the reasoning store: import a file, or ask a model")
    reason.add_argument("--import", dest="files", action="append", metavar="FILE", help="a file with reasoning")
    backends = "native: the engine of this process (Native.path); openai: a compatible endpoint (Endpoint.url)"
    reason.add_argument("--backend", choices=["native", "openai"], help=backends)
    reason.add_argument("--workdir", type=_place, default=Path("."), help="where quarantined rows and the card go")
    reason.add_argument("--dry_run", action="store_true", help="with --backend: show the token bill, then stop")
    reason.add_argument("--shard", metavar="I/N", help="with --backend: only this part of the rows, from 0/N")
    reason.add_argument("--engine", choices=["ray"], help="do all shards as tasks of a Ray cluster (extra `ray`)")
    reason.add_argument("--batch_out", type=Path, metavar="FILE", help="write the missing requests for a batch API")
    reason.add_argument("--batch_in", type=Path, action="append", metavar="FILE", help="bring in a batch's answers")
    actions = reason.add_subparsers(dest="action", metavar="ACTION")
    against = verb("compare", "ask two backends about the same rows, and say how far they agree", actions, workdir=True)
    against.add_argument("--backend", choices=["native", "openai"], required=True, help="the first one")
    against.add_argument("--other", choices=["native", "openai"], required=True, help=f"its settings: {OTHER}/...")
    against.add_argument("--rows", type=int, default=100, help="how many, from the first")
    verify = verb("verify", "read a store again, and say what is damaged", actions)
    verify.add_argument("--store", help="its path; else Reasoning.store")

    verb("train", "tune one model for one paradigm", workdir=True)
    experiment = verb("experiment", "paradigms × training sizes × seeds, and one table", workdir=True)
    experiment.add_argument("--shard", metavar="I/N", help="only this part of the cells, from 0/N; one folder for all")
    experiment.add_argument("--engine", choices=["ray"], help="make the cells as tasks of a Ray cluster (extra `ray`)")

    evaluate = verb("evaluate", "score a trained bundle on a split")
    evaluate.add_argument("bundle", help="working directory of `fiat train`, or a bundle")
    evaluate.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="add or replace a split")
    evaluate.add_argument("--split", help="the split to score; else the one that --data names, or validation")
    evaluate.add_argument("--workdir", type=_place, required=True, help="where results are written")

    report = verb("report", "a finished run as a page, or two runs compared; tables for other documents", gin=False)
    report.add_argument("workdir", type=Path, nargs="+", help="working directory of a finished run; two are compared")
    outputs = "what is written, by suffix: .html, .md, .json, .tex; repeatable"
    report.add_argument("--out", type=Path, action="append", required=True, metavar="FILE", help=outputs)
    report.add_argument("--rows", type=int, default=1000, help="how many rows the page has to browse")
    for name, of in (("prompt", "a million prompt tokens of θ_β"), ("completion", "a million answer tokens of θ_β")):
        report.add_argument(f"--price_{name}", type=float, metavar="MONEY", help=f"of {of}")
    report.add_argument("--price_hour", type=float, metavar="MONEY", help="of an hour of the run's devices")

    predict = verb("predict", "answer the rows of a file with a trained bundle")
    predict.add_argument("bundle", help="working directory of `fiat train`, or a bundle")
    predict.add_argument("source", help="rows to answer")
    predict.add_argument("--out", type=_place, required=True, help="JSONL file of predictions")

    export = verb("export", "write a trained bundle for other programs")
    export.add_argument("bundle", help="working directory of `fiat train`, or a bundle")
    forms = "peft (the adapter), merged (a whole model) or bundle (for `fiat` elsewhere)"
    export.add_argument("--format", required=True, help=forms)
    export.add_argument("--out", type=_place, required=True)

    serve = verb("serve", "answer over HTTP: a large model, a tuned one, or the fused pair")
    serve.add_argument("--bundle", action="append", default=[], metavar="[NAME=]DIR", help="a tuned θ_τ; repeatable")

    plan = verb("plan", "whether a run fits a machine, and how fast it could be, compiled for it without it")
    plan.add_argument("--topology", metavar="SLICE", help="a TPU slice, say v5e:16x16; else the local devices")
    plan.add_argument("--search", action="store_true", help="rank all meshes of these devices")
    plan.add_argument("--workdir", type=Path, default=Path("runs/plan"), help="where results and programs are written")

    demo = verb("demo", "the whole of FIAT on a generated task, with nothing to download")
    demo.add_argument("--workdir", type=_place, default=Path("runs/demo"), help="where results are written and resumed")
    demo.add_argument("--full", action="store_true", help="every part removed in turn, three sizes, three seeds")
    actions = demo.add_subparsers(dest="action", metavar="ACTION")
    made = verb("build", "make the demo's models anew, from nothing", actions, gin=False)
    made.add_argument("--out", type=_place, default=Path("runs/demo-models"), help="directory of the models")

    doctor = verb("doctor", "check the machines of a run before it begins: devices, network, storage", gin=False)
    places = "a directory or URL that the run writes and all its processes read; repeatable"
    doctor.add_argument("--storage", action="append", default=[], metavar="DIR", help=places)
    doctor.add_argument("--devices", type=int, help="how many there are to be, over all processes")
    return parser
