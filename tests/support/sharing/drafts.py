"""A small model's shares, put into a store without an owner."""

import os

import numpy as np

from models.configs.reading import LlamaConfig
from models.programs.families import parameters_of
from models.programs.plan import Plan
from models.programs.sharing import SEED_BYTES
from protocols.base.shares import Role
from protocols.drivers.ops import Ranges
from protocols.functions.attention import AttentionRange
from protocols.functions.normalize import NormRange
from puma_actors.hosts.stores.draft import Draft
from puma_actors.hosts.stores.manifest import seed_file, words_file
from puma_actors.hosts.stores.store import ModelStore

UPLOAD = "0123456789abcdef" * 2
CONFIG = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
)
PLAN = Plan(
    CONFIG,
    Ranges({"norm": NormRange(drop=1, low=1, high=9, frac=18)}, {"0": AttentionRange(11, 6, 12)}),
)


def fill(draft: Draft, plan: Plan = PLAN) -> Draft:
    draft.begin(plan.digest())
    dealer = draft.store.role is Role.DEALER
    for which in (1, 2) if dealer else (1,):
        draft.write(seed_file(which), os.urandom(SEED_BYTES))
    draft.write("tokenizer.json", b"{}")
    for number, parameter in enumerate(parameters_of(plan.config).values()):
        words = np.arange(np.prod(parameter.shape), dtype="<u8") + number
        half = len(words) // 2
        if not dealer:
            draft.write(words_file(number), words[:half])
            draft.write(words_file(number), words[half:])
    return draft


def put(store: ModelStore, name: str = "tiny") -> None:
    draft = fill(store.draft(name, UPLOAD))
    draft.finish(PLAN)
    draft.publish()
    draft.keep()
