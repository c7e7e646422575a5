"""Published and measured figures of other systems, for comparison with ours.

They come from other machines: traffic compares directly, seconds only roughly.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reference:
    """SecretFlow-SPU's figures for a workload.

    Attributes:
        megabytes: sent by all parties together (10^6 bytes).
        sends: messages of the busiest party; SPU counts no rounds.
        error: largest distance from the exact result.
    """

    seconds: float
    megabytes: float
    sends: int
    error: float


SPU_SYSTEM = (
    "SecretFlow-SPU 0.9.5: ABY3, 64-bit ring, 18 fraction bits, PUMA's GeLU and softmax, all "
    "operands secret; measured warm on another machine with 2 vCPU, three processes over loopback"
)

SPU = {
    "matmul 128x768 @ 768x3072": Reference(0.49, 20.4, 3, 4.9e-4),
    "matmul 1024^3": Reference(1.32, 54.5, 3, 5.8e-4),
    "product": Reference(0.16, 52.0, 3, 5.9e-5),
    "comparison": Reference(1.49, 108.0, 8, 0.0),
    "gelu": Reference(2.67, 362.0, 56, 0.0184),
    "softmax": Reference(1.11, 136.0, 160, 0.063),
    "norm": Reference(0.16, 15.5, 62, 0.0027),
    "embedding": Reference(13.5, 1026.0, 10, 3.8e-6),
}
"""Workload (10^6 elements; GeLU 128x3072; softmax 1536x128; LayerNorm 128x768; one-hot embedding of
128 tokens in 30522 x 768) -> figures.
"""

SPU_MODELS = {
    "BERT-base": Reference(103.0, 8193.0, 5044, 0.095),
    "GPT-2 base": Reference(56.0, 1875.0, 4785, 0.062),
}
"""Whole models, as in `SPU`: BERT-base 128 tokens, GPT-2 base 32 tokens to next-token logits."""
PAPER_MODELS = {
    "BERT-base, 128 tokens": "PUMA: 33.9 s, 10.773 GB",
    "RoBERTa-base, 128 tokens": "PUMA: 41.6 s, 11.463 GB",
    "BERT-large, 128 tokens": "PUMA: 73.7 s, 27.246 GB",
    "GPT-2 base, 32 in, 1 out": "PUMA: 15.5 s, 3.774 GB",
    "GPT-2 medium, 32 in, 1 out": "PUMA: 30.3 s, 7.059 GB",
    "GPT-2 large, 32 in, 1 out": "PUMA: 54.2 s, 11.952 GB",
    "LLaMA-7B, 4 in, 1 out": "PUMA: 122.0 s, 0.907 GB",
    "LLaMA-7B, 8 in, 1 out": "PUMA: 200.5 s, 1.794 GB",
    "LLaMA-7B, 8 in, 2 out": "PUMA: 364.5 s, 2.857 GB",
}
"""arXiv 2307.12533, tables 3 to 5: BERT and RoBERTa 128 tokens; GPT-2 32 in, 1 out (three servers
of 32 vCPU, 5 Gbit/s, 1 ms); LLaMA-7B 8 in, 1 out (128 threads each).
"""

SPU_GPT2 = (
    "SecretFlow-SPU 0.9.5, GPT-2 base (124M), 32 tokens to next-token logits, another machine "
    "with 2 vCPU: 56 s, 1875 MB, no cache of keys and values"
)
PUMA_PAPER = (
    "PUMA (arXiv 2307.12533, three servers of 32 vCPU, 5 Gbit/s, 1 ms), 32 tokens in, 1 out: "
    "GPT-2 base 15.5 s, 3774 MB; GPT-2 medium 30.3 s, 7059 MB; LLaMA-7B (128 threads each), "
    "8 in, 1 out: 200.5 s, 1794 MB"
)


@dataclass(frozen=True, slots=True)
class PaperErrors:
    """Known errors of a function of the paper.

    Attributes:
        largest, mean: the absolute errors that the paper claims, if any.
        worst: largest error of its formula, evaluated in floating point, and where that is.
    """

    largest: float | None
    mean: float | None
    worst: float
    where: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PAPER_ERRORS = {
    "gelu": PaperErrors(0.01403, 0.00168, 0.0199, "as x -> 3 from below"),
    "silu": PaperErrors(None, None, 0.0719, "just above 4"),
    "exp": PaperErrors(None, None, 0.0085, "near -2"),
}
"""PUMA, arXiv 2307.12533: GeLU of section 4.1; SiLU as its authors released it; exp of section 4.2.
"""
