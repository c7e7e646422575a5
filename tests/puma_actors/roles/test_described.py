"""How public weights are sent and stored: what comes back is what was sent, or it is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf_files import tiny, write
from hypothesis import given
from hypothesis import strategies as st
from stored_matrices import KINDS, PLAIN, stored
from tiny_models import ENCODERS, KIN, SETTINGS, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.programs.families import parameters_of, sources_of
from models.programs.opened import MOST_PARTS, Ingredients, ingredients, made_of, open_parameter
from models.programs.plan import Parameter
from protocols.base.shares import Role
from protocols.errors import RemoteProtocolError
from protocols.kernels.stored.formats import FORMATS
from protocols.public_weight import Part, PublicTable, PublicWeight
from puma_actors.roles.described import Description, PartEntry, pack, read_head, read_stored
from puma_actors.roles.matrices import Matrices
from puma_actors.roles.messages import MatrixMessage, PieceMessage, parse

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
A, B = Role.EVALUATOR_A, Role.EVALUATOR_B


def file_of(found: Ingredients) -> np.ndarray:
    description, buffers = pack(found)
    return np.concatenate([np.frombuffer(description.head(), np.uint8), *buffers])


def integers(handle):
    """All that a party computes with."""
    if isinstance(handle, PublicTable):
        handle = handle.weight
    if isinstance(handle, PublicWeight):
        return handle.integers(0, handle.shape[1])
    return handle.a


def check_all(folder: Path) -> None:
    """Every tensor of a checkpoint comes out of its file as it was opened."""
    with open_checkpoint(folder) as checkpoint:
        wanted = parameters_of(checkpoint.config)
        for (name, source), parameter in zip(sources_of(checkpoint), wanted.values(), strict=True):
            data = file_of(ingredients(parameter, source))
            handle = made_of(A, parameter, read_stored(parameter, data))
            here = open_parameter(A, name, parameter, source)
            assert type(handle) is type(here)
            assert handle.shape == here.shape == parameter.shape
            np.testing.assert_array_equal(integers(handle), integers(here))


@pytest.mark.parametrize("model_type", [name for name in SETTINGS if name not in KIN])
def test_every_family_to_the_bit(tmp_path, model_type):
    head = "masked-lm" if model_type in ENCODERS else "causal-lm"
    dtype = DTYPES[sorted(SETTINGS).index(model_type) % 3]
    save(tiny_model(model_type, head).to(dtype), tmp_path)
    check_all(tmp_path)


def test_a_gguf_whose_rows_are_in_another_order(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, tiny("llama"), "llama")
    check_all(path)


@st.composite
def matrices(draw):
    """A matrix in parts, with anything that may be folded into it."""
    count = draw(st.integers(1, MOST_PARTS))
    kinds = [draw(st.sampled_from(KINDS)) for _ in range(count)]
    block = max(FORMATS[kind].entries for kind in kinds)
    inputs = block if block > 1 else draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    parts = []
    for kind in kinds:
        outputs = draw(st.integers(1, 5))
        across = kind in PLAIN and draw(st.booleans())
        shape = (inputs, outputs) if across else (outputs, inputs)
        ordered = not across and draw(st.booleans())
        order = rng.permutation(outputs) if ordered else None
        parts.append(Part(stored(rng.normal(0, 0.1, shape), kind), kind, across, order))
    outputs = sum(part.shape[1] for part in parts)
    sizes = {"row": inputs, "column": outputs, "bias": outputs, "shift": inputs}
    folded = {
        name: rng.normal(0, 1, size).astype(np.float32)
        for name, size in sizes.items()
        if draw(st.booleans())
    }
    rows = inputs + ("bias" in folded or "shift" in folded)
    return Parameter("weight", (rows, outputs)), Ingredients(tuple(parts), **folded)


@given(matrices())
def test_what_is_sent_comes_back(case):
    parameter, found = case
    description, buffers = pack(found)
    assert description.size(parameter) == sum(buffer.size for buffer in buffers)
    told = parse(MatrixMessage(number=0, made=description).header())
    assert told.made == description
    data = file_of(found)
    assert len(description.head()) % 64 == 0
    first, again = (made_of(B, parameter, each) for each in (found, read_stored(parameter, data)))
    assert first.shape == again.shape == parameter.shape
    np.testing.assert_array_equal(integers(first), integers(again))


# -- refused ---------------------------------------------------------------------------------------

WEIGHT = Parameter("weight", (32, 6))
ONE = PartEntry(kind="f32", outputs=6)
WRONG = [
    (WEIGHT, {"parts": [PartEntry(kind="f32", outputs=5)]}, "do not make 32 x 6"),
    (WEIGHT, {"parts": [ONE, ONE]}, "do not make 32 x 6"),
    (WEIGHT, {"parts": [PartEntry(kind="q8_0", outputs=6)], "bias": True}, "cannot be q8_0"),
    (WEIGHT, {"parts": [PartEntry(kind="q4_0", outputs=6, across=True)]}, "cannot be q4_0"),
    (WEIGHT, {"parts": [PartEntry(kind="f32", outputs=6, across=True, ordered=True)]}, "cannot"),
    (Parameter("weight", (1, 6)), {"parts": [ONE], "bias": True}, "do not make 1 x 6"),
    (Parameter("table", (6, 32)), {"parts": [ONE], "shift": True}, "no shift"),
    (Parameter("table", (5, 32)), {"parts": [ONE]}, "do not make 5 x 32"),
    (Parameter("gain", (8,)), {"parts": [PartEntry(kind="f32", outputs=8)]}, "one row of f32"),
    (Parameter("gain", (8,)), {"parts": [PartEntry(kind="f16", outputs=1)]}, "one row of f32"),
    (
        Parameter("gain", (8,)),
        {"parts": [PartEntry(kind="f32", outputs=1)], "row": True},
        "one row of f32",
    ),
]


@pytest.mark.parametrize(("parameter", "changes", "reason"), WRONG)
def test_descriptions_that_do_not_fit_the_plan(parameter, changes, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        Description(**changes).size(parameter)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "q5_1"},
        {"kind": 1},
        {"outputs": 0},
        {"outputs": 1 << 40},
        {"across": 1},
        {"size": 5},
    ],
)
def test_descriptions_that_are_none(changes):
    header = MatrixMessage(number=0, made=Description(parts=[ONE])).header()
    header["made"]["parts"][0] |= changes
    with pytest.raises(RemoteProtocolError, match="malformed request"):
        parse(header)
    header["made"]["parts"] = []
    with pytest.raises(RemoteProtocolError, match="malformed request"):
        parse(header)


@pytest.mark.parametrize("data", [b"", b"\xff" * 80, b"\x3c\0\0\0" + b"{" * 60, b"\x04\0\0\0{}"])
def test_files_without_a_head(data):
    with pytest.raises(RemoteProtocolError, match="does not begin with a description"):
        read_head(np.frombuffer(data, np.uint8))


class Shelf:
    """In memory."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}

    def append(self, number, data):
        self.files[number] = self.files.get(number, b"") + bytes(data)

    def head(self, number, size):
        return self.files[number][:size]

    def whole(self, number):
        return np.frombuffer(self.files[number], np.uint8)


@pytest.fixture
def arriving(monkeypatch):
    """Two tensors that an evaluator expects, and where it keeps them."""
    wanted = {"first": WEIGHT, "second": Parameter("gain", (8,))}
    monkeypatch.setattr("puma_actors.roles.matrices.parameters_of", lambda config: wanted)
    shelf = Shelf()
    return Matrices(A, SimpleNamespace(config=None), shelf), shelf


def first(values=0.5, **changes):
    values = np.full((6, 32), values, np.float32)
    part = Part(values.view(np.uint8), "f32", order=np.arange(6))
    made, buffers = pack(Ingredients((part,), **changes))
    return MatrixMessage(number=0, made=made), np.concatenate(buffers)


def send(matrices, data, start=0, number=0):
    matrices.piece(PieceMessage(number=number, start=start), [memoryview(data)])


def test_pieces_in_order(arriving):
    matrices, shelf = arriving
    message, data = first()
    matrices.describe(message)
    assert list(shelf.files) == [0]
    send(matrices, data[:100])
    send(matrices, data[100:], 100)
    assert shelf.files[0].endswith(data.tobytes())
    made, buffers = pack(Ingredients((Part(np.zeros((1, 32), np.uint8), "f32"),)))
    with pytest.raises(RemoteProtocolError, match="second is not complete"):
        matrices.check_complete()
    matrices.describe(MatrixMessage(number=1, made=made))
    with pytest.raises(RemoteProtocolError, match="second is not complete"):
        matrices.check_complete()
    send(matrices, buffers[0], number=1)
    matrices.check_complete()
    with pytest.raises(RemoteProtocolError, match="tensor 2 is not expected"):
        matrices.describe(MatrixMessage(number=2, made=made))


def test_pieces_out_of_place(arriving):
    matrices, shelf = arriving
    message, data = first()
    with pytest.raises(RemoteProtocolError, match="a piece of tensor 0 is not expected"):
        send(matrices, data)
    with pytest.raises(RemoteProtocolError, match="tensor 1 is not expected"):
        matrices.describe(MatrixMessage(number=1, made=message.made))
    with pytest.raises(RemoteProtocolError, match="first is described wrongly: its parts"):
        matrices.describe(MatrixMessage(number=0, made=Description(parts=[ONE, ONE])))
    assert not shelf.files
    matrices.describe(message)
    with pytest.raises(RemoteProtocolError, match="a piece of tensor 1 is not expected"):
        send(matrices, data[:8], 0, 1)
    for start in (4, data.size):
        with pytest.raises(RemoteProtocolError, match=f"bytes from {start} on, 0 was the next"):
            send(matrices, data[:8], start)
    for piece in (np.zeros(data.size + 1, np.uint8), data[:0]):
        with pytest.raises(RemoteProtocolError, match=rf"first came with {piece.size} bytes, 792"):
            send(matrices, piece)
    with pytest.raises(RemoteProtocolError, match="first came with 16 bytes"):
        matrices.piece(PieceMessage(number=0, start=0), [memoryview(data[:8])] * 2)
    with pytest.raises(RemoteProtocolError, match="first came with 792 bytes too few"):
        matrices.describe(MatrixMessage(number=1, made=message.made))
    with pytest.raises(RemoteProtocolError, match="first is not complete"):
        matrices.check_complete()


NAN = np.full(32, np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"row": NAN}, "a row factor is not finite"),
        ({"column": np.full(6, np.inf, np.float32)}, "a column factor is not finite"),
        ({"values": np.nan}, "entries are not finite"),
        ({"values": 1e9}, r"entries reach 1e\+09"),
    ],
)
def test_numbers_that_do_not_fit(arriving, changes, reason):
    matrices, _ = arriving
    message, data = first(**changes)
    matrices.describe(message)
    with pytest.raises(RemoteProtocolError, match=f"the owner's first is unusable: {reason}"):
        send(matrices, data)


@pytest.mark.parametrize("name", ["bias", "shift"])
def test_vectors_that_do_not_fit(monkeypatch, name):
    wanted = {"first": Parameter("weight", (33, 6))}
    monkeypatch.setattr("puma_actors.roles.matrices.parameters_of", lambda config: wanted)
    matrices = Matrices(B, SimpleNamespace(config=None), Shelf())
    message, data = first(**{name: NAN[:6] if name == "bias" else NAN})
    matrices.describe(message)
    with pytest.raises(RemoteProtocolError, match="the owner's first is unusable: nan"):
        send(matrices, data)


@pytest.mark.parametrize("last", [0, 6, 1 << 31])
def test_an_order_that_is_no_permutation(arriving, last):
    matrices, _ = arriving
    order = [0, 1, 2, 3, 4, last]
    message, data = first()
    data[:24] = np.array(order, "<u4").view(np.uint8)
    matrices.describe(message)
    with pytest.raises(RemoteProtocolError, match="the order of 6 outputs is not a permutation"):
        send(matrices, data)


def test_the_dealer_expects_none(monkeypatch):
    monkeypatch.setattr(
        "puma_actors.roles.matrices.parameters_of", lambda config: {"first": WEIGHT}
    )
    matrices = Matrices(Role.DEALER, SimpleNamespace(config=None), Shelf())
    matrices.check_complete()
    with pytest.raises(RemoteProtocolError, match="tensor 0 is not expected"):
        matrices.describe(first()[0])


# -- an upload that is continued -------------------------------------------------------------------


def test_what_is_there_is_not_expected_again(monkeypatch):
    wanted = {"first": WEIGHT}
    monkeypatch.setattr("puma_actors.roles.matrices.parameters_of", lambda config: wanted)
    message, data = first()
    whole = message.made.head() + data.tobytes()
    for there in (0, len(whole) - 1, len(whole) - data.size, len(whole)):
        shelf = Shelf()
        shelf.files[0] = whole[:there]
        matrices = Matrices(A, SimpleNamespace(config=None), shelf, [there])
        matrices.describe(message)
        behind = max(0, there - len(message.made.head()))
        if behind < data.size:
            with pytest.raises(RemoteProtocolError, match="first is not complete"):
                matrices.check_complete()
            send(matrices, data[behind:], behind)
        matrices.check_complete()
        assert shelf.files[0] == whole


def test_what_is_there_is_of_another_description(monkeypatch):
    wanted = {"first": WEIGHT}
    monkeypatch.setattr("puma_actors.roles.matrices.parameters_of", lambda config: wanted)
    message, data = first()
    head = message.made.head()
    other = head.replace(b"f32", b"f16")
    for there in (other, other + data.tobytes(), head[:-1], head + data.tobytes() + b"1"):
        shelf = Shelf()
        shelf.files[0] = there
        matrices = Matrices(A, SimpleNamespace(config=None), shelf, [len(there)])
        with pytest.raises(RemoteProtocolError, match="first was described otherwise before"):
            matrices.describe(message)
        assert shelf.files[0] == there


def test_what_is_there_is_looked_through_too(monkeypatch):
    wanted = {"first": WEIGHT}
    monkeypatch.setattr("puma_actors.roles.matrices.parameters_of", lambda config: wanted)
    message, data = first(np.nan)
    shelf = Shelf()
    shelf.files[0] = message.made.head() + data.tobytes()
    matrices = Matrices(A, SimpleNamespace(config=None), shelf, [len(shelf.files[0])])
    with pytest.raises(RemoteProtocolError, match="entries are not finite"):
        matrices.describe(message)
