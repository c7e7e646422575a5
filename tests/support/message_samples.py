"""A tiny model's plan, and one request of every kind."""

from models.configs.reading import LlamaConfig
from models.programs.plan import Plan, draft_plan
from protocols.drivers.ops import Ranges
from puma_actors.prepare.unit import UnitMessage
from puma_actors.roles.described import Description, PartEntry
from puma_actors.roles.messages import (
    CloseMessage,
    EndedMessage,
    EndMessage,
    InferMessage,
    JoinMessage,
    MatrixMessage,
    NextMessage,
    PieceMessage,
    PlanMessage,
    ProgressMessage,
    ReadyMessage,
    RefusedMessage,
    SeedMessage,
    StepMessage,
    TensorMessage,
    UploadedMessage,
)

CONFIG = LlamaConfig(
    vocab_size=5,
    hidden_size=4,
    num_layers=1,
    num_heads=2,
    max_positions=16,
    bos_token_id=None,
    eos_token_ids=(),
    intermediate_size=6,
    num_kv_heads=1,
    head_dim=2,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_embeddings=True,
)
_TYPICAL = draft_plan(CONFIG).ranges
_NORMS = ("layers.0.attention_norm", "layers.0.mlp_norm", "norm")
PLAN = Plan(
    CONFIG,
    Ranges(
        {name: _TYPICAL.norms[name] for name in _NORMS},
        {"layers.0": _TYPICAL.attention["layers.0"]},
    ),
)
ANNOUNCED = PlanMessage(plan=PLAN.to_public(), digest=PLAN.digest())
ALL = [
    ANNOUNCED,
    SeedMessage(which=1),
    TensorMessage(number=0, start=0, rows=5),
    MatrixMessage(number=0, made=Description(parts=[PartEntry(kind="f32", outputs=5)])),
    PieceMessage(number=0, start=0),
    UploadedMessage(),
    JoinMessage(session="00" * 16),
    ReadyMessage(digest=PLAN.digest()),
    InferMessage(number=3, lengths=[4], steps=2),
    InferMessage(number=3, lengths=[4], steps=9, draft=4),
    NextMessage(number=4, accepted=2, proposed=4),
    StepMessage(number=3, rounds=1, online_bytes=2, offline_bytes=3, prepared=False, joint=False),
    UnitMessage(number=3, unit="5" * 32, held=True),
    ProgressMessage(number=3, rounds=17),
    RefusedMessage(number=3, text="no memory", busy=True),
    EndMessage(number=3),
    EndedMessage(number=3),
    CloseMessage(),
]
