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

# What training puts around a model and leaves in the names: torch.compile (around parts, too), its
# parallel wrappers, and PEFT.
_WRAPPERS = ("module.", "base_model.model.")
_COMPILED = "_orig_mod."

# Checkpoints converted from TensorFlow, such as bert-base-uncased, kept its names.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class Naming:
    """The names of a family's tensors on disk.

    Attributes:
        prefix: of the base model in a class with a head, with its dot.
        children: first parts of the names inside the base model.
        heads: first parts of the names outside, of all heads that transformers has for the family.
        ignored: canonical names of buffers that follow from the configuration.
        other_prefixes: written instead of `prefix` by some classes.
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
        """Whether a matrix, by canonical name, is stored as (inputs, outputs)."""
        return self.transposed is not None and self.transposed.fullmatch(name) is not None

    def canonical(self, name: str) -> str:
        """Canonical name of a stored tensor; an unknown name is kept and refused later."""
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
        """Canonical name -> stored name. Raises ModelError when two stored names mean the same."""
        found: dict[str, str] = {}
        for name in stored:
            canonical = self.canonical(name)
            if canonical in found:
                both = f"{found[canonical][:80]} and {name[:80]}"
                raise ModelError(f"tensors {both} are two copies of {canonical[:80]}")
            found[canonical] = name
        return found

    def is_of_other_head(self, name: str, used: Iterable[str]) -> bool:
        """Whether a tensor belongs to a head that none of the tensors `used` belongs to."""
        first = name.partition(".")[0]
        return first in self.heads and first not in {n.partition(".")[0] for n in used}
