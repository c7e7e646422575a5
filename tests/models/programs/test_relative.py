"""Rows of relative positions: in whole numbers, and those of transformers."""

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from models.programs.relative import distance_buckets, log_rows

FAR = np.arange(-1500, 1501)


def test_mpnet():
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(FAR)).numpy()
    np.testing.assert_array_equal(distance_buckets(FAR), expected)


@pytest.mark.parametrize(
    ("buckets", "reach"), [(256, 512), (6, 20), (4, 10), (128, 512), (32, 128), (64, 65), (10, 512)]
)
def test_deberta(buckets, reach):
    distance = np.arange(-reach + 1, reach)  # key less query; transformers has the other sign
    found = make_log_bucket_position(torch.tensor(-distance), buckets, reach).long()
    expected = torch.clamp(found + buckets, 0, 2 * buckets - 1).numpy()
    np.testing.assert_array_equal(log_rows(distance, buckets, reach), expected)


def test_without_buckets_every_distance_has_its_row():
    rows = log_rows(np.arange(-7, 8), 0, 5)
    assert rows.tolist() == [9, 9, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
