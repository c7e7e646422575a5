"""Names of tensors: how names in a family's checkpoints map to the canonical ones.

The canonical name is the one in the state dict of transformers' class with a head, for example
`bert.encoder.layer.0.output.dense.weight`. A checkpoint of the bare model lacks the prefix `bert.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocols.errors import ModelError

Shape = tuple[int, ...]

# Wrappers used in training leave these prefixes in the names: torch's parallel wrappers, PEFT and
# torch.compile, which may also wrap parts of a model.
_WRAPPERS = ("module.", "base_model.model.")
_COMPILED = "_orig_mod."

# Checkpoints converted from TensorFlow, such as bert-base-uncased, still use its names.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class Naming:
    """The names of a family's tensors on disk.

    Attributes:
        prefix: prefix of the base model in a class with a head, with the dot.
        children: first parts of names inside the base model.
        heads: first parts of names outside the base model, for all heads that transformers has for
            the family.
        ignored: canonical names of buffers that follow from the configuration.
        other_prefixes: prefixes that some classes use instead of `prefix`.
        renamed: first parts of names in older versions of transformers -> the current ones.
        transposed: canonical names of matrices that are stored as (inputs, outputs).
    """

    prefix: str
    children: frozenset[str]
    heads: frozenset[str]
    ignored: re.Pattern[str]
    other_prefixes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    transposed: re.Pattern[str] | None = None

    def is_transposed(self, name: str) -> bool:
        """Whether the matrix with this canonical name is stored as (inputs, outputs)."""
        return self.transposed is not None and self.transposed.fullmatch(name) is not None

    def canonical(self, name: str) -> str:
        """The canonical name of a stored tensor; an unknown name is kept and refused later."""
        name = name.replace(_COMPILED, "")
        while name.startswith(_WRAPPERS):
            name = name.removeprefix(_WRAPPERS[0]).removeprefix(_WRAPPERS[1])
        for old, new in _OLD_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        first, _, rest = name.partition(".")
        if first in self.renamed:
            first = self.renamed[first]
            name = f"{first}.{rest}"
        if f"{first}." in self.other_prefixes and rest.partition(".")[0] in self.children:
            return self.prefix + rest
        return self.prefix + name if first in self.children else name

    def stored_names(self, stored: Iterable[str]) -> dict[str, str]:
        """Canonical name -> stored name. Raises ModelError if two stored names mean the same."""
        found: dict[str, str] = {}
        for name in stored:
            canonical = self.canonical(name)
            if canonical in found:
                both = f"{found[canonical][:80]} and {name[:80]}"
                raise ModelError(f"tensors {both} are two copies of {canonical[:80]}")
            found[canonical] = name
        return found

    def is_of_other_head(self, name: str, used: Iterable[str]) -> bool:
        """Whether a tensor belongs to a head to which no tensor in `used` belongs."""
        first = name.partition(".")[0]
        return first in self.heads and first not in {n.partition(".")[0] for n in used}
