"""Small checkpoints on disk, and torch's answer to the same weights."""

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from waiting import in_time, settled

from models.checkpoints.weights import Checkpoint
from models.configs.reading import LlamaConfig
from protocols.base.ring import Floats
from puma_actors.base.logs import NAME

_FORWARD = inspect.signature(transformers.LlamaForCausalLM.forward)
CACHE = "cache" if "cache" in _FORWARD.parameters else "past_key_values"
"""What this transformers calls the keys and values so far (renamed in 5.24)."""
CHOICE = 0.05
"""Where torch's own best two logits are closer than this, either is a fair choice."""
_TEXT = (
    "END USER BOT I you we they see saw like know read write a the my red old big cat dog tree "
    "house river book and or but then now here there up down in on under over . , ? ! one two "
    "three four"
)
WORDS = _TEXT.split()
TEMPLATE = "{% for m in messages %}USER {{ m['content'] }} {% endfor %}BOT"


def radians(turns: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Angles in 2^-64 of a turn."""
    return turns.astype(np.float64) * (2 * np.pi / 2**64)


# -- checkpoints -----------------------------------------------------------------------------------


def save_model(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random model of few words with weights large enough that its logits differ."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes}))
    model.to(dtype).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """One token a word of `WORDS`."""
    ids = {word: index for index, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="."))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def set_config(folder: Path, **changes: Any) -> Path:
    """Change entries of a checkpoint's `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


# -- torch -----------------------------------------------------------------------------------------


def torch_model(checkpoint: Checkpoint) -> transformers.LlamaForCausalLM:
    """Transformers' model in float32, filled with a checkpoint's tensors by name."""
    config: LlamaConfig = checkpoint.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    weights = {name: torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.names()}
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.float().eval()


def torch_logits(model: transformers.LlamaForCausalLM, ids: Sequence[int]) -> Floats:
    """(len(ids), vocabulary)."""
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0]
    return logits.double().numpy()


def torch_greedy(
    model: transformers.LlamaForCausalLM, ids: Sequence[int], count: int
) -> tuple[list[int], list[float]]:
    """The next `count` tokens, never stopping; and how far the best logit leads each time."""
    answer: list[int] = []
    leads = []
    given, cache = torch.tensor([list(ids)]), None
    with torch.no_grad():
        for _ in range(count):
            out = model(given, use_cache=True, **{CACHE: cache})
            best = out.logits[0, -1].double().topk(2)
            cache, given = out[CACHE], best.indices[:1].reshape(1, 1)
            answer.append(int(best.indices[0]))
            leads.append(float(best.values[0] - best.values[1]))
    return answer, leads


def agreeing(logits: Floats, reference: Floats) -> list[str]:
    """Assert that each row has its largest logit where torch has it, or where torch's best two are
    closer than `CHOICE`; a line for each row of the latter kind.
    """
    notes = []
    for row, (ours, theirs) in enumerate(zip(logits, reference, strict=True)):
        choice, best = int(np.argmax(ours)), int(np.argmax(theirs))
        if choice == best:
            continue
        second = float(np.partition(theirs, -2)[-2])
        note = f"position {row}: token {choice} ({theirs[choice]:.4f}) for {best} ({second:.4f})"
        assert theirs[best] - second <= CHOICE, note
        assert theirs[best] - theirs[choice] <= CHOICE, note
        notes.append(note)
    return notes


@contextmanager
def usual_logs() -> Iterator[logging.Logger]:
    """The package's logger, as it was again after the block."""
    logger = logging.getLogger(NAME)
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    try:
        yield logger
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


# -- nothing left behind ---------------------------------------------------------------------------


def own_threads() -> set[threading.Thread]:
    """Threads other than anyio's pool and that of `Compute`, which end with the event loop."""
    pools = ("AnyIO worker", "puma-compute")
    return {t for t in threading.enumerate() if not any(pool in t.name for pool in pools)}


@asynccontextmanager
async def leaves_nothing() -> AsyncIterator[None]:
    """A block that ends, with the tasks and threads that it began with."""
    tasks, threads = asyncio.all_tasks(), own_threads()
    with in_time():
        yield
    await settled()
    assert asyncio.all_tasks() <= tasks
    assert own_threads() <= threads
