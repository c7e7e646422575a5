"""A small model for long loads: a few layers, so that thousands of requests fit into minutes, and
requests whose answers leave no doubt.
"""

import random
from pathlib import Path

import numpy as np
import tokenizers

from bench.runtime.resident import save_random
from bench.serve.clients import Ask
from models.configs.reading import LlamaConfig
from models.tokens.tokenizer import Tokenizer
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster

LEAD = 0.05
"""Requests are left out where the best two logits of a step are closer than this: by the noise of
truncation, either could be the answer.
"""
_PROMPT, _ANSWER = (2, 16), (2, 12)
_CANDIDATES = 8
"""Requests drawn for each one that is wanted."""
_CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    max_positions=64,
    bos_token_id=None,
    eos_token_ids=(),
    intermediate_size=128,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_embeddings=False,
)


def save_small(folder: Path) -> Path:
    """Write the model, with a tokenizer of one word a token, into a folder that exists."""
    save_random(_CONFIG, folder)
    words = {f"w{number}": number for number in range(_CONFIG.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    return folder


async def clear_asks(model: Path, count: int, *, seed: int = 1) -> list[Ask]:
    """Requests of many lengths, and what this process answers to each of them alone.

    Raises:
        PumaError: fewer than `count` have a clear answer.
    """
    coins, tokenizer = random.Random(seed), Tokenizer.load(model)
    found: list[Ask] = []
    async with LocalCluster.from_pretrained(model) as cluster:
        for _ in range(_CANDIDATES * count):
            if len(found) == count:
                break
            prompt = [coins.randrange(_CONFIG.vocab_size) for _ in range(coins.randint(*_PROMPT))]
            most, ids = coins.randint(*_ANSWER), list[int]()
            async for token in cluster.generate(prompt, max_new_tokens=most, temperature=0.0):
                if token.id is None or token.logits is None:
                    continue
                second, best = np.partition(token.logits, -2)[-2:]
                if best - second < LEAD:
                    break
                ids.append(token.id)
            if len(ids) == most:
                found.append(Ask(prompt, most, tokenizer.decode(ids)))
    if len(found) < count:
        raise PumaError(f"only {len(found)} of {count} requests have a clear answer: draw others")
    return found
