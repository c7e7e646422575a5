"""What `python -m bench dask` predicts."""

from bench.runtime import workers


def test_a_layer_has_four_products():
    assert workers.shapes(4, 6, 2) == 2 * [(4, 12), (4, 4), (4, 12), (6, 4)]


def test_the_prediction_is_its_formula():
    calls, products, back = workers.predicted([(10, 20), (20, 5)], 4, 0.5, 100.0)
    assert calls == 2 * 0.5
    assert products == 8 * (200 + 100) / 4 / 100
    assert back == 8 * 4 * 25 / 1.25e9


def test_what_is_predicted_has_seventy_billion_weights():
    assert 68e9 < sum(rows * columns for rows, columns in workers._LARGE) < 70e9
