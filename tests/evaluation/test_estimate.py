"""Sizes of named shapes are those that were published."""

import pytest

from lit_prune.anatomy import find_sublayers
from lit_prune.evaluation import Sizes, shaped

SIZES = [
    *[
        ("7b", 6.738),
        ("8b", 8.030),
        ("70b", 70.554),
        ("405b", 405.853),
        ("llama-2-13b", 13.016),
        ("llama-2-70b", 68.977),
    ],
    *[("opt-13b", 12.853), ("opt-30b", 29.975), ("opt-66b", 65.720)],
]


@pytest.mark.parametrize(("name", "billions"), SIZES)
def test_shapes_have_the_sizes_that_were_published(name, billions):
    model = shaped(name)
    sizes = Sizes.of(model)
    assert len(find_sublayers(model).sublayers) == 2 * sizes.num_blocks
    assert sizes.parameters / 1e9 == pytest.approx(billions, abs=0.001)
