"""`fiat serve`: θ_β and θ_τ loaded and named, and the fused pairs put together from bundles."""

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fiat_jax.distributed import is_main
from fiat_jax.errors import UserError
from fiat_jax.evaluation.extract import find_extractor
from fiat_jax.experiments.bundle import Bundle, load_bundle_model, open_feed
from fiat_jax.experiments.feed import Feed, Reasons, rows_by_id
from fiat_jax.inference.config import EngineConfig
from fiat_jax.inference.driver import Driver
from fiat_jax.inference.engine import Engine
from fiat_jax.inference.worker import Worker
from fiat_jax.models import peft
from fiat_jax.models.checkpoints import open_checkpoint
from fiat_jax.models.config import DecoderConfig
from fiat_jax.models.model import Model, ModelConfig, load_model
from fiat_jax.prompts.extract import Reasoning
from fiat_jax.prompts.fields import Row
from fiat_jax.prompts.instructions import load_instructions
from fiat_jax.prompts.render import Rendered, Renderer
from fiat_jax.prompts.tokenizer import Tokenizer
from fiat_jax.reasoning.native import Native
from fiat_jax.reasoning.openai import Endpoint, OpenAIBackend
from fiat_jax.serving.config import Serve
from fiat_jax.serving.gate import Gate
from fiat_jax.serving.guard import access
from fiat_jax.serving.pair import Generator, LocalReasoner, Pair, Ranker, Reasoner, RemoteReasoner
from fiat_jax.serving.remote import RemoteText
from fiat_jax.serving.run import run
from fiat_jax.serving.service import Served
from fiat_jax.serving.text import TextModel
from fiat_jax.sharding import DECODE, MeshConfig, axis_size
from fiat_jax.store import sampling_seed
from fiat_jax.tasks.task import input_row, row_key

FUSED = "fiat"
LONGEST = 2048  # tokens of a request where Serve.max_length says nothing
SHORTER = 4  # times, blocks while slots are free
NO_SETTINGS = ("dropped", "attention")  # of what the store keeps of how θ_β was asked


@dataclasses.dataclass(frozen=True)
class Asked:
    """What `fiat serve` is asked: bundles by the names of their pairs, and where θ_β and θ_τ are.

    θ_β: weights, or an endpoint; neither: what the reasoning of training was asked of. `tau`: an endpoint that has θ_τ
    with the bundle's adapter, in place of the weights.
    """

    serve: Serve
    bundles: Mapping[str, Bundle]
    native: Native | None
    endpoint: Endpoint | None
    tau: Endpoint | None
    mesh: MeshConfig


def with_large_model(asked: Asked) -> Asked:
    """Return the same with θ_β from where the bundles' reasoning was asked of it, if nothing else is said.

    Raises:
        UserError: it was asked of several.
    """
    told = [bundle for bundle in asked.bundles.values() if bundle.asked]
    if asked.native or asked.endpoint or not told:
        return asked
    settings, *others = ({k: v for k, v in bundle.asked.items() if k not in NO_SETTINGS} for bundle in told)
    if any(other != settings for other in others):
        raise UserError(
            "the bundles' reasoning was asked of several models; say which one answers: --gin.Native.path=DIR, or "
            "--gin.Endpoint.url=URL --gin.Endpoint.model=NAME"
        )
    if settings.pop("kind") == "native":
        return dataclasses.replace(asked, native=Native(**settings))
    if told[0].provenance is not None:
        settings["extra"] = told[0].provenance.model.get("extra", {})
    return dataclasses.replace(asked, endpoint=Endpoint(**settings))


def named_bundles(given: Sequence[str], read: Callable[[str], Bundle]) -> dict[str, Bundle]:
    """Return bundles by name from "NAME=DIR" arguments; a single one needs no name.

    Raises:
        UserError: several without a name, or of one name.
    """
    pairs = [text.split("=", 1) if "=" in text else [FUSED, text] for text in given]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"--bundle gives {len(given)} pairs the names {', '.join(names)}: write --bundle NAME=DIR each")
    return {name: read(path) for name, path in pairs}


def serve(asked: Asked, console: Console) -> None:
    """Serve until a signal comes; see `serving.run`. Of several processes the first listens, the others compute."""
    if not asked.bundles and asked.native is None:
        raise UserError("nothing to serve: give --bundle DIR, or the weights of a model with --gin.Native.path=DIR")
    asked = with_large_model(asked)
    _log_requests()
    key = os.environ.get(asked.serve.key_variable)
    assembly = Assembly(asked, lambda text: console.print(text, highlight=False, markup=False))
    assembly.check()
    if is_main():
        run(asked.serve, key, assembly.load, assembly.driver, slots=assembly.slots, say=assembly.say)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process says when it is over: it lets requests end
    assembly.load(Gate(0))
    assembly.driver.follow()


class Assembly:
    """Puts models, renderers and engines together; `check` says what is wrong before anything is loaded."""

    def __init__(self, asked: Asked, say: Callable[[str], None]):
        self.asked, self.say, self.driver = asked, say, Driver()
        self._feeds = {name: open_feed(bundle) for name, bundle in asked.bundles.items()}
        self._tokenizer = self._reasoning_tokenizer()
        self._renderers = {name: self._reasoning_renderer(name) for name in asked.bundles}

    @property
    def slots(self) -> int:
        """How many sequences are answered at once."""
        native = self.asked.native
        return native.slots if native else max(1, len(self.asked.bundles)) * Native.slots

    def check(self) -> None:
        """Refuse pairs without a θ_β, and say where θ_β or I_β is not what θ_τ was tuned with.

        Raises:
            UserError: what is missing, and the flag that gives it.
        """
        for name, bundle in self.asked.bundles.items():
            if self._needs_reasoning(name) and not (self.asked.native or self.asked.endpoint):
                raise UserError(
                    f"{name}: θ_τ reads the reasoning of {bundle.theta_beta or 'a large model'}, and none is given: "
                    "--gin.Native.path=DIR (its weights), or --gin.Endpoint.url=URL --gin.Endpoint.model=NAME"
                )
            renderer = self._renderers[name]
            provenance = bundle.provenance
            if renderer is None or provenance is None or provenance.source != "generated":
                continue
            if provenance.prompt_hash != renderer.instructions.reasoning_hash:
                self.say(f"warning: {name}: I_β in {bundle.prompts.file} is not what θ_τ was tuned with")
            native, fingerprint = self.asked.native, provenance.model.get("fingerprint")
            if native and fingerprint not in (None, open_checkpoint(native.path).files.fingerprint()):
                self.say(f"warning: {name}: the weights in {native.path} are not those of {bundle.theta_beta}")

    def load(self, gate: Gate) -> dict[str, Served]:
        """Load all models and compile their programs; return them by name, the pairs first."""
        models: dict[str, Served] = {}
        reasoner = self._load_reasoner(gate, models)
        for name, (text, answers) in self._load_answerers(gate).items():
            bundle, feed = self.asked.bundles[name], self._feeds[name]
            models[name] = self._pair(name, bundle, feed, reasoner, answers)
            if text is not None:
                models[text.name] = text
        return dict(sorted(models.items(), key=lambda item: not isinstance(item[1], Pair)))

    def _needs_reasoning(self, name: str) -> bool:
        return self._feeds[name].paradigm.reads_reasoning

    def _reasoning_tokenizer(self) -> Tokenizer | None:
        asked = self.asked
        if asked.native:
            return Tokenizer.from_directory(asked.native.path)
        if asked.serve.tokenizer:
            return Tokenizer.from_directory(asked.serve.tokenizer)
        if asked.endpoint and asked.endpoint.send == "ids":
            raise UserError("Endpoint.send='ids' needs the large model's tokenizer: --gin.Serve.tokenizer=DIRECTORY")
        return None

    def _reasoning_renderer(self, name: str) -> Renderer | None:
        if not self._needs_reasoning(name):
            return None
        bundle = self.asked.bundles[name]
        instructions = load_instructions(bundle.prompts.file, rows_by_id(bundle.task))
        return Renderer(instructions, self._tokenizer or self._feeds[name].tokenizer, bundle.prompts.max_length)

    def _load_reasoner(self, gate: Gate, models: dict[str, Served]) -> Reasoner | None:
        if self.asked.endpoint:
            return RemoteReasoner(OpenAIBackend(self.asked.endpoint, self.slots), self.asked.serve.request_seconds)
        native = self.asked.native
        if native is None:
            return None
        assert self._tokenizer is not None
        mesh = self.asked.mesh.build()
        model = load_model(ModelConfig(native.path, native.dtype), mesh, tuned=False, rules=DECODE)
        prefixes = [ids for renderer in self._renderers.values() if renderer for ids in renderer.reasoning_prefixes()]
        if not isinstance(model.config, DecoderConfig):
            prefixes = []
        longest = max([self.asked.serve.prefix_length, *map(len, prefixes)])
        shapes = {"block": native.block, "prefill_rows": native.prefill_rows}
        config = self._shapes(model, native.slots, longest, self.asked.serve.max_length, **shapes)
        name = native.name or Path(native.path).resolve().name
        worker = Worker(Engine(model, self._tokenizer.eos_id, config), self.driver)
        text = TextModel(name, worker, self._tokenizer, self.asked.serve, gate, identity=_identity(model))
        for ids in dict.fromkeys(prefixes):
            text.pin_prefix(ids, native.prefixes or None)
        models[name] = text
        return LocalReasoner(text)

    def _shapes(self, model: Model, slots: int, prefix: int, length: int, **shapes: Any) -> EngineConfig:
        """Return an engine's shapes for a prefix and requests of these lengths, as far as the model reads."""
        limit, ways = model.config.max_length, axis_size(model.mesh, model.build.rules.batch)
        longest = LONGEST if limit is None else limit - prefix
        if not 0 < (length or 1) <= longest:
            raise UserError(
                f"the model reads {limit} tokens, of which a prefix takes {prefix}: requests of {length or 1} do not "
                "fit; lower Serve.max_length or Serve.prefix_length, or use fewer exemplars"
            )
        config = EngineConfig(
            **shapes,
            slots=slots,
            slot_length=length or min(longest, LONGEST),
            shortest_bucket=self.asked.serve.shortest_bucket,
            prefix_length=prefix,
            alternatives=self.asked.serve.alternatives if isinstance(model.config, DecoderConfig) else 0,
            score=True,
            order="arrival",
        ).divided(ways)
        return dataclasses.replace(config, short_block=-(-config.block // SHORTER))

    def _load_answerers(self, gate: Gate) -> dict[str, tuple[TextModel | None, Any]]:
        """Return by pair the name under which θ_τ itself is served, and what answers; bundles of one base share it."""
        if self.asked.tau:
            return {name: (None, RemoteText(self.asked.tau, self.slots)) for name in self.asked.bundles}
        found: dict[str, tuple[TextModel | None, Any]] = {}
        loaded: dict[Any, Worker] = {}
        for name, bundle in self.asked.bundles.items():
            feed = self._feeds[name]
            base = self._base(bundle, feed)
            adapter = ""
            if base in loaded:
                adapter, engine = name, loaded[base].engine
                engine.add_adapter(name, peft.load_adapter(engine.model, bundle.directory / "adapter"))
            else:
                model = load_bundle_model(bundle, self.asked.mesh, DECODE)
                length = max(b.prompts.max_length for b in self.asked.bundles.values())
                config = self._shapes(model, Native.slots, 0, length, prefill_rows=Native.prefill_rows)
                loaded[base] = Worker(Engine(model, feed.renderer.end_id, config), self.driver)
            identity = {"root": bundle.theta_tau, "adapter": str(bundle.directory)}
            text = TextModel(
                f"{name}-tau", loaded[base], feed.tokenizer, self.asked.serve, gate, adapter, identity=identity
            )
            found[name] = text, text
        return found

    def _base(self, bundle: Bundle, feed: Feed) -> Any:
        """Return what bundles have in common that one engine can answer for."""
        if not bundle.adapter:
            return bundle.theta_tau_path
        base = open_checkpoint(bundle.theta_tau_path)
        lora = peft.read_lora_config(bundle.directory / "adapter", base.family, base.config)
        return bundle.theta_tau_path, bundle.model, repr(dataclasses.replace(lora, dropout=0.0)), feed.renderer.end_id

    def _pair(self, name: str, bundle: Bundle, feed: Feed, reasoner: Reasoner | None, answers: Any) -> Pair:
        task, renderer = bundle.task, feed.renderer

        def render(row: Row, reasoning: Reasoning | None) -> Rendered:
            reasons = Reasons({row[task.id_field]: reasoning} if reasoning else {})
            return feed.render(row, reasons, with_target=False)

        def extract(row: Row, completion: str) -> str | None:
            words = {renderer.instructions.verbalise(label): label for label in task.candidates(row)}
            return find_extractor(task.kind)(feed.answer_in(completion), words)

        def seed(row: Row) -> int | None:
            return sampling_seed(bundle.reasoning.set, row_key(task, row), 0)

        if feed.ranks:
            answerer = Ranker(answers, task.candidates, renderer, bundle.length_normalise)
        else:
            answerer = Generator(answers, feed.new_tokens, extract)
        reasoning = self._renderers[name]
        return Pair(
            name,
            (*task.fields, *([task.choices_field] if task.choices_field else [])),
            lambda row: input_row(task, row),
            reasoning,
            render,
            reasoner if reasoning else None,
            answerer,
            seed=seed,
            answer_without=self.asked.serve.when_reasoning_fails == "answer",
            identity={
                "root": bundle.theta_tau,
                "theta_beta": bundle.theta_beta,
                "task": task.name,
                "lists": [task.choices_field] if task.choices_field else [],
            },
        )


def _log_requests() -> None:
    """Write the line of each request to where the server's own lines go."""
    access.addHandler(logging.StreamHandler(sys.stdout))
    access.setLevel(logging.INFO)
    access.propagate = False


def _identity(model: Model) -> dict[str, Any]:
    return {"root": model.fingerprint, "dtype": model.build.dtype}
