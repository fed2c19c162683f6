import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lit_prune.report import save_figure, score_map


def realistic(num_blocks, num_rounds, kinds, unscored=()):
    """Scores from 0.5 to 30, block 0 at 500, some negative, one infinite; the lowest goes in every round."""
    generator = np.random.default_rng(0)
    base = {f"{kind}.{block}": generator.uniform(0.5, 30) for kind in kinds for block in range(num_blocks)}
    base |= {f"{kinds[0]}.0": 500.0, f"{kinds[0]}.1": math.inf, f"{kinds[-1]}.4": -1.5, f"{kinds[0]}.2": -0.5}
    rounds, removed = [], []
    for _ in range(num_rounds):
        scores = {name: score for name, score in base.items() if name not in (*removed, *unscored)}
        rounds.append(scores)
        removed.append(min(scores, key=scores.get))
    return rounds, removed


def hatched(axis):
    """Cells [block, row] that are marked as gone."""
    return {
        (int(patch.get_x()), int(patch.get_y()) + row)
        for patch in axis.patches
        if patch.get_hatch()
        for row in range(int(patch.get_height()))
    }


def empty(axis):
    """Cells [block, row] without a colour."""
    (image,) = axis.images
    return {(block, row) for row, block in np.argwhere(np.ma.getmaskarray(image.get_array()))}


def legend(figure):
    return [text.get_text().partition(" (")[0] for each in figure.legends for text in each.get_texts()]


def crosses(axis):
    return {tuple(offset) for each in axis.collections for offset in np.asarray(each.get_offsets()) if offset.any()}


def color_at(figure, axis, block, row):
    """The colour that is really drawn near a corner of a cell, away from numbers and crosses."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    x, y = axis.transData.transform((block + 0.2, row + 0.2))
    pixels = np.asarray(canvas.buffer_rgba())
    return pixels[pixels.shape[0] - 1 - int(y), int(x), :3] / 255


def test_what_went_is_hatched_and_numbered_in_the_order_it_went():
    rounds, removed = realistic(12, 5, ("attention", "mlp"))
    axis = score_map(rounds, removed, num_blocks=12).axes[0]
    places = [(int(name.split(".")[1]), ("attention", "mlp").index(name.split(".")[0])) for name in removed]
    assert hatched(axis) == set(places)
    numbers = {text.get_text(): text.get_position() for text in axis.texts if text.get_text().isdecimal()}
    assert numbers == {str(index + 1): (x + 0.5, y + 0.5) for index, (x, y) in enumerate(places)}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["attention", "mlp"]


def test_each_round_has_its_cross_in_the_panel_of_its_kind():
    rounds, removed = realistic(12, 5, ("attention", "mlp"))
    panels = score_map(rounds, removed, num_blocks=12).axes[1:3]
    for kind, axis in zip(("attention", "mlp"), panels, strict=True):
        assert kind in axis.get_title(loc="left")
        expected = {
            (int(name.split(".")[1]) + 0.5, index + 0.5) for index, name in enumerate(removed) if name.startswith(kind)
        }
        assert expected
        assert crosses(axis) == expected
        assert axis.yaxis_inverted()


def test_cells_without_a_colour_are_hatched_where_they_went_and_the_legend_has_what_occurs():
    rounds, removed = realistic(8, 3, ("attention", "mlp"), unscored=["mlp.6"])
    figure = score_map(rounds, removed, num_blocks=8)
    assert removed[0] == "mlp.4"
    top, attention, mlp = figure.axes[:3]
    assert empty(mlp) - hatched(mlp) == {(6, 0), (6, 1), (6, 2)}
    assert empty(top) - hatched(top) == {(6, 1)}
    assert empty(attention) == hatched(attention)
    assert {(4, 1), (4, 2)} <= hatched(mlp)
    assert (4, 0) not in hatched(mlp)
    # Viridis begins with a dark violet: the lowest score of all, in the round before it went.
    assert color_at(figure, mlp, 4, 0) == pytest.approx((0.267, 0.005, 0.329), abs=0.01)
    assert legend(figure) == ["removed", "not scored", "removed after this round"]
    assert legend(score_map(*realistic(8, 3, ("mlp",)), num_blocks=8)) == ["removed", "removed after this round"]
    assert legend(score_map([{"mlp.0": 1.0, "mlp.1": 2.0}], ["mlp.0"], num_blocks=2)) == ["removed"]
    assert legend(score_map([], [], num_blocks=2)) == ["not scored"]


def test_outliers_and_infinity_leave_low_scores_apart():
    scores = {f"mlp.{block}": 0.5 + block for block in range(28)} | {"mlp.28": 5000.0, "mlp.29": math.inf}
    figure = score_map([scores], ["mlp.0"], num_blocks=30)
    colors = np.array([color_at(figure, figure.axes[0], block, 0) for block in range(1, 30)])
    apart = np.abs(np.diff(colors[:12], axis=0)).sum(axis=1)
    assert apart.min() > 0.02, "neighbours among the low ones look the same"
    assert colors[-1] == pytest.approx(colors[-2], abs=0.01)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "\N{INFINITY}"]


@pytest.mark.parametrize(("extra", "extend"), [({}, "neither"), ({"mlp.9": math.inf}, "max")])
def test_the_color_bar_says_what_it_shows_and_where_it_ends(extra, extend):
    scores = dict.fromkeys([f"mlp.{block}" for block in range(8)], 3.0) | extra
    bar = score_map([scores], ["mlp.0"], num_blocks=10).axes[0].images[0].colorbar
    assert bar.ax.get_title(loc="left") == "importance (low goes first)"
    assert bar.extend == extend
    labels = [label.get_text() for label in bar.ax.get_xticklabels()]
    assert len(set(labels)) == len(labels) >= 2


def test_close_scores_have_ticks_that_differ():
    scores = {f"mlp.{block}": 17.3121 + 0.0001 * block for block in range(10)}
    bar = score_map([scores], ["mlp.0"], num_blocks=10).axes[0].images[0].colorbar
    labels = [label.get_text() for label in bar.ax.get_xticklabels()]
    assert len(set(labels)) == len(labels) > 3
    assert all(17.31 < float(label) < 17.32 for label in labels)


def test_one_round_is_one_panel_and_several_are_one_more_of_each_kind():
    rounds, removed = realistic(6, 3, ("block",))
    assert len(score_map(rounds[:1], removed[:1], num_blocks=6).axes) == 1 + 1
    figure = score_map(rounds, removed, num_blocks=6, title="a title")
    assert len(figure.axes) == 2 + 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["block"]
    assert figure.get_suptitle() == "a title"


def test_rounds_of_a_one_shot_search_hold_fewer_and_fewer():
    first = {"attention.0": 9.0, "mlp.0": 1.0, "attention.1": 2.0}
    rounds = [first, {"attention.0": 9.0, "attention.1": 2.0}]
    figure = score_map(rounds, ["mlp.0", "attention.1"], num_blocks=2)
    assert hatched(figure.axes[0]) == {(0, 1), (1, 0)}


def test_a_plan_without_removals_has_a_map_too(tmp_path):
    figure = score_map([], [], num_blocks=4)
    assert not hatched(figure.axes[0])
    assert save_figure(figure, tmp_path / "map.png").stat().st_size > 1000


def test_the_file_is_a_whole_png_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "runs" / "map.png"
    assert save_figure(score_map(*realistic(30, 7, ("attention", "mlp")), num_blocks=30), path) == path
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert len(content) > 20_000
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    figure = score_map([], [], num_blocks=2)

    def fail(target, **_):
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        save_figure(figure, path)
    assert [each.name for each in tmp_path.iterdir()] == ["map.png"]
    assert path.read_bytes() == b"old"


def test_a_set_goes_member_by_member_and_its_score_is_of_none_of_them():
    rounds = [{"block.1+block.2": 1.0, "block.2+block.3": 2.0}]
    axis = score_map(rounds, ["block.1+block.2"], num_blocks=5).axes[0]
    assert hatched(axis) == {(1, 0), (2, 0)}
    mixed = score_map([{"mlp.0": 1.0, "attention.1+mlp.1": 0.5}], ["attention.1+mlp.3"], num_blocks=5)
    assert hatched(mixed.axes[0]) == {(1, 0), (3, 1)}
    shown = mixed.axes[0].images[0].get_array()
    assert (shown.count(), shown[1, 0]) == (1, 1.0)
