"""Upload an owner's model to the stores of three remote parties: all of them keep it, or none does.

seconds = await upload_model(config, checkpoint, "llama")
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import anyio
import anyio.to_thread

from models.checkpoints.weights import Checkpoint
from models.programs.families import LazyParameters, sources_of
from models.programs.plan import Plan, Weights
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.base.compute import Compute
from puma_actors.hosts.caller import call_all, hang_up, shake_hands, take_back
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.stores.manifest import PUBLIC_BYTES, check_name
from puma_actors.hosts.unfinished import Record
from puma_actors.roles.actor import ActorOptions
from puma_actors.roles.messages import CommitMessage, FileMessage
from puma_actors.roles.owner import Owner, Progress, check_opened, ignore_progress
from puma_actors.roles.sending import Sending

Already: TypeAlias = Callable[[int, int], None]


class ForStores:
    """A `Delivery` to parties that store the model. Each party first writes everything to its disk.
    When all have done so, they publish it in their stores. When all have done that, the owner
    tells them to keep it. A party that does not get this message, or goes away before it can record
    it, takes its model back, so that no party has a model that others lack. What a party has of an
    upload that was cut is not sent again.

    Args:
        files: the files to publish with the model, by name.
        record: of this upload.
        already: called once with the bytes that the evaluators have, and with all that they need.

    Attributes:
        committing: whether some party may already have published it in its store.
    """

    def __init__(self, files: Mapping[str, bytes], record: Record, already: Already) -> None:
        self._files = files
        self._record = record
        self._already = already
        self._parameters: Mapping[str, Floats] = {}
        self.committing = False

    def watched(self, parameters: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """As `Delivery`."""
        self._parameters = _Watched(parameters, self._record.see)
        return self._parameters

    async def deliver(self, sending: Sending) -> None:
        """As `Delivery`."""
        offload = sending.scheduler.compute.offload
        await offload(self._record.begin, sending.plan, self._parameters)
        for name, data in self._files.items():
            await sending.everyone(FileMessage.model_validate({"name": name}), [data])
        await sending.announce()
        if sending.plan.weights == "public":
            await sending.matrices(self._already)
        else:
            held = await sending.held()
            self._already(held.nbytes, held.total)
            await sending.shares(self._record.seeds(), held)
        await sending.uploaded()
        await sending.accepted()
        self.committing = True
        for _ in ("publish", "keep"):
            await sending.everyone(CommitMessage())
            await sending.accepted()


class _Watched(Mapping[str, Floats]):
    """Matrices that are shown to `see` whenever they are looked up."""

    def __init__(self, inner: Mapping[str, Floats], see: Callable[[str, Floats], None]) -> None:
        self._inner = inner
        self._see = see

    def __getitem__(self, name: str) -> Floats:
        matrix = self._inner[name]
        self._see(name, matrix)
        return matrix

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


async def upload_model(
    config: ClusterConfig,
    checkpoint: Checkpoint,
    name: str,
    *,
    tokenizer: object | None = None,
    texts: Sequence[Sequence[int]] = (),
    compute: Compute | None = None,
    public_weights: bool = False,
    progress: Progress = ignore_progress,
    already: Already = lambda held, total: None,
) -> dict[str, float]:
    """Share a model's weights with the parties' stores; all of them keep it, or none does.

    The matrices are read one by one. An upload that was cut is continued by the same call; see
    `puma_actors.hosts.unfinished`.

    Args:
        checkpoint: an open checkpoint of a file (`open_checkpoint`) or of a model in memory
            (`open_model`).
        texts: token ids of texts on which precision is tested, in addition to made-up tokens.
        tokenizer: published with the model, so that clients need no copy; a `Tokenizer`, or a
            transformers tokenizer in memory.
        public_weights: the evaluators get the weights as the checkpoint stores them, and keep them
            in the clear. Prompts and answers stay private.
        already: called once with the bytes that the evaluators have from an earlier attempt, and
            with all that they need.

    Returns:
        Seconds for loading, calibrating and sharing.

    Raises:
        ConfigError: a party refuses. Busy: it is full now. PeerFailed: it failed, with the reason.
    """
    check_opened(checkpoint)
    files = {} if tokenizer is None else Tokenizer.from_object(tokenizer).to_files()
    size = sum(map(len, files.values()))
    if size > PUBLIC_BYTES:
        raise ConfigError(
            f"the tokenizer has {size} bytes, at most {PUBLIC_BYTES} are published: upload without "
            "it (--no-tokenizer)"
        )
    options = ActorOptions(name=config.identity(Role.OWNER).name, compute=compute or Compute())
    weights: Weights = "public" if public_weights else "private"
    with Record.of(config, check_name(name)) as record:
        plan = await _known(record, checkpoint, weights, progress)
        delivery = ForStores(files, record, already)
        owner = Owner(
            checkpoint,
            options,
            texts=texts,
            progress=progress,
            delivery=delivery,
            weights=weights,
            sources=list(sources_of(checkpoint)) if public_weights else [],
            lazy=True,
            plan=plan,
        )
        progress("calling the parties", 0.0)
        await _deliver(config, name, owner, delivery, record)
        record.done()
    return owner.seconds


async def _deliver(
    config: ClusterConfig, name: str, owner: Owner, delivery: ForStores, record: Record
) -> None:
    """Connect an owner with the parties, and run it. If it fails when some may have published the
    model, they take it back.
    """
    upload = record.upload
    calls = await call_all(config, Role.OWNER, "upload", model=name, upload=upload)
    try:
        owner.attach(await shake_hands(config, Role.OWNER, calls))
        await owner.run()
    except BaseException:
        await hang_up(calls)
        if delivery.committing:
            with anyio.CancelScope(shield=True):
                await take_back(config, name, upload)
        raise
    finally:
        await hang_up(calls)


async def _known(
    record: Record, checkpoint: Checkpoint, weights: Weights, progress: Progress
) -> Plan | None:
    """The plan of the upload that is continued, if there is one."""

    def fits(plan: Plan) -> bool:
        here = (checkpoint.config.to_public(), checkpoint.sentences, checkpoint.ranking, weights)
        return (plan.config.to_public(), plan.sentences, plan.ranking, plan.weights) == here

    def look() -> Plan | None:
        return record.known(LazyParameters(checkpoint), fits, progress)

    return await anyio.to_thread.run_sync(look)
