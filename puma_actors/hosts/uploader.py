"""Upload an owner's model to the stores of three remote parties: all of them keep it, or none does.

seconds = await upload_model(config, checkpoint, "llama")
"""

from collections.abc import Mapping, Sequence

import anyio

from models.checkpoints.weights import Checkpoint
from models.programs.families import sources_of
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.base.compute import Compute
from puma_actors.hosts.caller import call_all, discard_model, hang_up, shake_hands
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.stores.manifest import PUBLIC_BYTES, check_name
from puma_actors.roles.actor import ActorOptions
from puma_actors.roles.messages import CommitMessage, FileMessage
from puma_actors.roles.owner import Owner, Progress, check_opened, ignore_progress
from puma_actors.roles.sending import Sending


class ForStores:
    """A `Delivery` to parties that store the model. Each party first writes everything to its disk.
    When all have done so, they publish it in their stores. When all have done that, the owner
    tells them to keep it. A party that does not get this message, or goes away before it can record
    it, removes its model again, so that no party has a model that others lack.

    Args:
        files: the files to publish with the model, by name.

    Attributes:
        committing: whether some party may already have published it in its store.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.committing = False

    async def deliver(self, sending: Sending) -> None:
        """As `Delivery`."""
        for name, data in self._files.items():
            await sending.everyone(FileMessage.model_validate({"name": name}), [data])
        await sending.model()
        await sending.accepted()
        self.committing = True
        for _ in ("publish", "keep"):
            await sending.everyone(CommitMessage())
            await sending.accepted()


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
) -> dict[str, float]:
    """Share a model's weights with the parties' stores; all of them keep it, or none does.

    Args:
        checkpoint: an open checkpoint of a file (`open_checkpoint`) or of a model in memory
            (`open_model`).
        texts: token ids of texts on which precision is tested, in addition to made-up tokens.
        tokenizer: published with the model, so that clients need no copy; a `Tokenizer`, or a
            transformers tokenizer in memory.
        public_weights: the evaluators get the weights as the checkpoint stores them, and keep them
            in the clear. Prompts and answers stay private.

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
    progress("calling the parties", 0.0)
    calls = await call_all(config, Role.OWNER, "upload", model=check_name(name))
    identity = config.identity(Role.OWNER)
    options = ActorOptions(name=identity.name, compute=compute or Compute())
    delivery = ForStores(files)
    sources = list(sources_of(checkpoint)) if public_weights else []
    owner = Owner(
        checkpoint,
        options,
        texts=texts,
        progress=progress,
        delivery=delivery,
        weights="public" if public_weights else "private",
        sources=sources,
    )
    try:
        owner.attach(await shake_hands(config, Role.OWNER, calls))
        await owner.run()
    except BaseException:
        await hang_up(calls)
        if delivery.committing:  # some may have published it already
            with anyio.CancelScope(shield=True):
                await discard_model(config, name)
        raise
    finally:
        await hang_up(calls)
    return owner.seconds
