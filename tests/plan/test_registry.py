import pytest

from lit_prune.errors import LitPruneError
from lit_prune.plan import Registry

SHAPES = Registry("shape")


@SHAPES.register("square")
def square(side: float = 1.0) -> float:
    return side * side


def test_by_name_by_path_and_with_options():
    assert SHAPES.create("square", side=3) == 9
    assert SHAPES.create("fractions.Fraction", numerator=1, denominator=2) == 0.5
    assert list(SHAPES) == ["square"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sqare", {}, "unknown shape 'sqare'; did you mean 'square'"),
        ("square", {"edge": 1}, "'square' does not take these options"),
        ("no_such_package.Shape", {}, "cannot import the shape"),
        ("fractions.NoSuch", {}, "cannot import the shape"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(LitPruneError, match=message):
        SHAPES.create(name, **options)
