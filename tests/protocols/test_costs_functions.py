"""The traffic of activations, exp and maxima, in figures."""

import pytest
from counting import same, tensor
from helpers import generator, share_ints

from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.compare import maximum
from protocols.functions.activations import ACTIVATIONS, activate
from protocols.functions.elementary import exp_negative
from protocols.functions.exponential import FAST, TIGHT, exp_part
from protocols.waves import evaluate as evaluate_waves


@pytest.mark.parametrize("name", sorted({f.name for f in ACTIVATIONS.values() if f.tight}))
@pytest.mark.parametrize("kind", ["tight", "fast"])
def test_waves(name, kind):
    waves = getattr(ACTIVATIONS[name], kind).waves

    async def program(lane, x):
        return await evaluate_waves(lane, x, waves, 12, 30)

    cost = same(program, tensor((8, 5), 40))
    assert cost.rounds == 2
    left = waves.width - waves.scale + 12
    lifted = 4 * (30 - left) * 40 // 8
    summed = 40 // 8 * (waves.width * 2 * waves.count + 2 * left)
    assert cost.online + cost.offline == summed + lifted


@pytest.mark.parametrize("form", [TIGHT, FAST])
def test_exp_part(form):
    async def program(lane, x):
        return await exp_part(lane, x, form)

    words = 5 * form.width
    assert same(program, tensor((8, 5), 32)) == Cost(1, 10 * (form.frac + 3), 2 * words)


@pytest.mark.parametrize(
    ("name", "tight", "fast", "least"), [("gelu", 1210, 760, 1190), ("silu", 2140, 820, 1320)]
)
def test_the_figures_of_an_activation(name, tight, fast, least):
    """Bits per element, of all parties; SecretFlow-SPU's GeLU sends 7365."""

    async def program(lane, x):
        return await activate(lane, x, ACTIVATIONS[name])

    x = tensor((800,), 44)
    sets = Settings("tight", "balanced"), Settings("fast", "balanced"), Settings("tight", "traffic")
    for settings, bound in zip(sets, (tight, fast, least), strict=True):
        cost = same(program, x, settings=settings)
        assert (cost.online + cost.offline) * 8 / 800 <= bound, settings


def test_the_figures_of_exp():
    for kind, bound in (("tight", 725), ("fast", 480)):
        cost = same(exp_negative, tensor((800,), 32), settings=Settings(approximation=kind))
        assert (cost.online + cost.offline) * 8 / 800 <= bound


def test_the_tree_of_least_traffic_sends_less():
    x = share_ints(generator().integers(-99, 99, (8, 64)), 20)

    async def program(lane, x):
        return (await maximum(lane, x))[0]

    costs = [same(program, x, settings=Settings(tree=tree)) for tree in ("rounds", "traffic")]
    sent = [cost.online + cost.offline for cost in costs]
    assert sent[1] < 0.6 * sent[0]
