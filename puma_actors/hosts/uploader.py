"""An owner's model for the stores of three parties elsewhere: all of them keep it, or none.

seconds = await upload_model(config, checkpoint, "llama")
"""

from collections.abc import Mapping, Sequence

import anyio

from models.checkpoints.weights import Checkpoint
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
    """A `Delivery` to parties that keep what they get. Each writes everything to its disk first;
    when all have, they make it a model of their stores; and when all have done that, they are told
    to keep it. A party that is not told, or is gone before it could note it, takes its model away
    again, so that none has one that others lack.

    Args:
        files: what is published with the model, by name.

    Attributes:
        committing: some party may have made it a model already.
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
    progress: Progress = ignore_progress,
) -> dict[str, float]:
    """Share a model's weights with the parties' stores; all of them keep it, or none.

    Args:
        checkpoint: an open one, of a file (`open_checkpoint`) or of a model in memory
            (`open_model`).
        texts: token ids of texts on which precision is tried, beside made-up tokens.
        tokenizer: published with the model, so that clients need none of their own; a `Tokenizer`,
            or one of transformers in memory.

    Returns:
        Seconds for loading, calibrating and sharing.

    Raises:
        ConfigError: a party refuses. Busy: it has no place now. PeerFailed: it failed, and why.
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
    owner = Owner(checkpoint, options, texts=texts, progress=progress, delivery=delivery)
    try:
        owner.attach(await shake_hands(config, Role.OWNER, calls))
        await owner.run()
    except BaseException:
        await hang_up(calls)
        if delivery.committing:  # some may have made it a model already
            with anyio.CancelScope(shield=True):
                await discard_model(config, name)
        raise
    finally:
        await hang_up(calls)
    return owner.seconds
