import pytest

from lit_prune.errors import LitPruneError
from lit_prune.plan import Registry, with_defaults

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


class Sides:
    """Has defaults, as scorers and searches do."""

    regular = False

    def __call__(self, length):
        return 1

    def corners(self, length):
        return 4


class Own:
    regular = True

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, length):
        return self.factor * length


@pytest.mark.parametrize(
    ("own", "regular", "area", "corners"), [(Own(2), True, 6, 4), (lambda length: length, False, 3, 4)]
)
def test_what_a_users_own_lacks_is_as_the_interface_has_it(own, regular, area, corners):
    found = with_defaults(Sides, own)
    assert isinstance(found, Sides)
    assert (found.regular, found(3), found.corners(3)) == (regular, area, corners)
    assert type(found).__name__ == type(own).__name__


def test_what_a_users_own_has_counts_and_the_object_stays_as_it_is():
    own = Own(2)
    own.corners = lambda length: length
    assert with_defaults(Sides, own).corners(3) == 3
    assert vars(own).keys() == {"factor", "corners"}
    whole = Sides()
    assert with_defaults(Sides, whole) is whole
