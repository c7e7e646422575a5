"""Use models on three remote parties, and upload models to them.

    cluster = await RemoteCluster.open(config, "llama")     admitted by all three; plan, tokenizer
    async with cluster:                                     keys agreed; then like `LocalCluster`
        logits = await cluster.forward([1, 2, 3])
    await upload_model(config, checkpoint, "llama")
    await prepare_units(config, "llama", PrepareOptions(tokens_in=64, tokens_out=32))

An opened cluster that is not entered must be closed with `aclose`. A failed session is over:
to try again, open a new one, which has a new id and new keys.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Self

import anyio

from models.programs.plan import Plan
from models.programs.program import Batch, Drafted
from models.programs.steps import RequestSettings, StepSettings
from models.tokens.tokenizer import Tokenizer
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.shares import Role
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.api.ids import whole
from puma_actors.api.life import Cluster
from puma_actors.api.requirements import Requirement, check_requirement, insist
from puma_actors.base.certs import expiring
from puma_actors.base.compute import Compute
from puma_actors.hosts.caller import Call, call_all, hang_up, shake_hands
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.prepared.asking import PrepareOptions, prepare_units
from puma_actors.hosts.stores.manifest import check_name
from puma_actors.hosts.unanimous import agreed_plan, common_stock
from puma_actors.hosts.uploader import upload_model
from puma_actors.planning.choice import Choice
from puma_actors.planning.measured import measured
from puma_actors.prepare.stock import Stock, check_prepared
from puma_actors.prepare.unit import Prepared
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.client import Client
from puma_actors.transports.delay.network import PRESETS

__all__ = ["PrepareOptions", "RemoteCluster", "prepare_units", "upload_model"]


class RemoteLinks:
    """`Links` to remote parties that have granted a session.

    Args:
        calls: the connections, from `call_all`; they are closed at the end.
    """

    once = "a session runs once: open a new one"
    actors: tuple[Actor, ...] = ()

    def __init__(self, cluster: ClusterConfig, calls: Mapping[Role, Call]) -> None:
        self.seconds: dict[str, float] = {}
        self._cluster = cluster
        self._calls = calls
        self._started = 0.0

    async def connect(self, client: Client) -> None:
        """Agree on keys with all three."""
        self._started = anyio.current_time()
        client.attach(await shake_hands(self._cluster, Role.CLIENT, self._calls))

    async def settle(self) -> None:
        """Record the time taken: by now the parties have agreed with each other, too."""
        self.seconds["connect"] = anyio.current_time() - self._started

    async def aclose(self) -> None:
        """Close the connections."""
        await hang_up(self._calls)


class RemoteCluster(Cluster):
    """See the module docstring. Create one with `open`.

    Attributes:
        model: the model's name at the parties. session: the session's id, in hex.
        seconds: how many seconds opening and connecting took.
        parties: the address of each party, and the identity that its certificate proves, if any.
        stock: the prepared units that there were when the session was opened.
        expires: when the certificates of the parties, of this client and of the authority expire,
            in seconds since 1970.

    Raises (from any method): ConfigError for unusable arguments; PeerFailed if a party died.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        model: str,
        calls: Mapping[Role, Call],
        tokenizer: Tokenizer | None,
        settings: RequestSettings,
        compute: Compute | None = None,
        prepared: Prepared = "auto",
    ) -> None:
        plan, tokens = agreed_plan(calls)
        self.stock = Stock(common_stock(each.answer.model for each in calls.values()), prepared)
        name = cluster.identity(Role.CLIENT).name
        options = ActorOptions(name=name, compute=compute or Compute())
        client = Client(options, plan=plan, tokens=tokens, stock=self.stock)
        links = RemoteLinks(cluster, calls)
        super().__init__(
            plan.config, tokenizer, client, settings, links, cluster.between, apart=True
        )
        told = {peer: each.answer.links for peer, each in calls.items()}
        self.route = measured(told) or cluster.between or PRESETS["lan"]
        self.sentences, self.ranking = plan.sentences, plan.ranking
        self.model = model
        self.session = calls[Role.DEALER].session.hex()
        self.parties = {
            role: (cluster.parties[role], calls[role].channel.peer_identity) for role in calls
        }
        self.expires = _expiries(cluster, calls)
        self.no_tokenizer = "none was published with the model: pass --tokenizer"

    @classmethod
    async def open(
        cls,
        cluster: ClusterConfig,
        model: str,
        *,
        tokenizer: object | None = None,
        settings: Settings | RequestSettings | None = None,
        compute: Compute | None = None,
        require: Requirement | None = None,
        prepared: Prepared = "auto",
    ) -> Self:
        """Ask all three parties for a session on a model; returns when all have it loaded.

        Args:
            tokenizer: the path of one, or a transformers tokenizer in memory; default: the one
                that the owner published with the model.
            require: "private-weights" refuses a model whose weights the parties know.
            prepared: whether requests use what `prepare_units` has made: "auto" if there is a unit
                that fits, "never", or "require", which refuses them otherwise.

        Raises:
            Busy: a party is full now. ConfigError: a party refuses, the parties hold different
            weights, or the model is not as required. TransportError: a party cannot be reached.
        """
        check_requirement(require)
        check_prepared(prepared)
        started = anyio.current_time()
        own = None if tokenizer is None else _own_tokenizer(tokenizer)
        wished = RequestSettings.of(settings)
        calls = await call_all(
            cluster,
            Role.CLIENT,
            "session",
            model=check_name(model),
            files=own is None,
            measure=wished.open,
        )
        try:
            if own is None:
                own = _published(calls)
            made = cls(cluster, model, calls, own, wished, compute, prepared)
            insist(require, made.weights, f"model {model}")
            _check_vocabulary(own, made.plan)
        except BaseException:
            await hang_up(calls)
            raise
        made.seconds["open"] = anyio.current_time() - started
        return made

    def rounds_done(self) -> int | None:
        step = self.step
        return None if step is None or step.index else self.client.rounds(step.number)

    def choose(
        self, batch: Batch, steps: int = 1, draft: int = 0, wished: RequestSettings | None = None
    ) -> Choice:
        """As `Requests.choose`; if there is a prepared unit that fits, its settings."""
        found = None if draft else self.stock.settings(batch, steps, wished or self.settings)
        return super().choose(batch, steps, draft, wished) if found is None else Choice(found)

    def predict(
        self,
        batch: Batch | int,
        decode: int | Sequence[Drafted] = 0,
        settings: StepSettings | None = None,
    ) -> list[Cost]:
        """As `Requests.predict`. Nothing is dealt if there is a prepared unit that fits."""
        first = batch if isinstance(batch, Batch) else Batch((whole(batch, "a length"),), "last")
        found = None
        if settings is None and isinstance(decode, int):
            found = self.stock.settings(first, 1 + decode, self.settings)
        if found is None:
            return super().predict(first, decode, settings)
        one, further = (replace(each, prepared=True) for each in (found.first, found.further))
        costs = super().predict(first, decode, StepSettings(one, further))
        return [replace(cost, offline=0) for cost in costs]


def _expiries(cluster: ClusterConfig, calls: Mapping[Role, Call]) -> dict[str, float]:
    """When certificates expire, by holder; empty without certificates."""
    shown = {str(role): call.channel.peer_identity for role, call in calls.items()}
    found: dict[str, float] = {
        role: proven.expires for role, proven in shown.items() if proven and proven.expires
    }
    if found:
        me = cluster.identity(Role.CLIENT)
        own = expiring(cluster.path(cluster.certificates), me)
        found.update(
            (str(me.role) if each.identity else "authority", each.not_after.timestamp())
            for each in own
        )
    return found


def _published(calls: Mapping[Role, Call]) -> Tokenizer | None:
    """The tokenizer that the owner published; all three parties must have the same one."""
    parts = {tuple((p.name, p.sha256) for p in each.answer.files) for each in calls.values()}
    if len(parts) != 1:
        raise ConfigError(
            "the parties hold different tokenizers for this model: pass --tokenizer, or run `puma "
            "models remove`, then `puma upload` again"
        )
    dealer = calls[Role.DEALER]
    if len(dealer.buffers) != len(dealer.answer.files):
        raise RemoteProtocolError("the dealer sent other files than it announced")
    files = {}
    for part, buffer in zip(dealer.answer.files, dealer.buffers, strict=True):
        files[part.name] = bytes(buffer)
        if hashlib.sha256(buffer).hexdigest() != part.sha256:
            raise RemoteProtocolError(f"{part.name} does not have the announced checksum")
    return Tokenizer.from_files(files) if files else None


def _own_tokenizer(given: object) -> Tokenizer:
    if isinstance(given, str | PathLike):
        return Tokenizer.load(Path(given))
    return Tokenizer.from_object(given)


def _check_vocabulary(tokenizer: Tokenizer | None, plan: Plan) -> None:
    size = plan.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer has more tokens than the model's {size}: pass the model's own"
        )
