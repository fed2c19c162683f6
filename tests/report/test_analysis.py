"""The pictures show the numbers, on one scale for all models, and the folder holds them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lit_prune.evaluation import Analysis, DepthFigures, PathFigures, SublayerFigures
from lit_prune.files import from_json
from lit_prune.report import analysis_figures, analysis_markdown, write_analysis

NAMES = ("attention.0", "mlp.0", "attention.1", "mlp.1")


def found(model="dense", names=NAMES, size=1.0, ri=(3.0, math.inf, -0.01, 0.5), **changes):
    sublayers = tuple(
        SublayerFigures(name, 10.0 * size + index, size + index, 0.9 + 0.02 * index, value, value)
        for index, (name, value) in enumerate(zip(names, ri, strict=False))
    )
    depths = tuple(DepthFigures(name, size, 5.0, 0.5, kl) for name, kl in (("embedding", 4.0), ("block.1", 0.0)))
    paths = tuple(PathFigures(name, 1.0, 2.0, 0.2) for name in ("embedding", *names, "biases"))
    settings = {"num_parameters": 1000, "num_tokens": 8, "num_predicted": 7, "loss": 2.0, "logit": 6.0}
    return replace(Analysis(model, 2, **settings, sublayers=sublayers, depths=depths, paths=paths), **changes)


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_a_picture_for_each_topic_that_was_measured():
    topics = {"norms", "similarity", "impact", "logit_lens", "unraveled"}
    assert set(analysis_figures([found()])) == topics
    assert set(analysis_figures([found(ri=(None,) * 4, paths=())])) == topics - {"impact", "unraveled"}
    # One model of two is enough.
    assert set(analysis_figures([found(ri=(None,) * 4), found("other")])) == topics


def test_panels_show_the_numbers_where_the_sublayers_are():
    figures = analysis_figures([found()])
    norms = lines(figures["norms"].axes[0])
    assert norms["attention output"].get_xydata().tolist() == [[0, 1], [1, 3]]
    assert norms["mlp output"].get_xydata().tolist() == [[0.5, 2], [1.5, 4]]
    assert norms["residual stream, read by a sublayer"].get_ydata().tolist() == [10, 11, 12, 13, 1]
    impact = lines(figures["impact"].axes[0])
    assert impact["attention"].get_ydata().tolist() == [3.0, -0.01]
    assert np.isfinite(impact["mlp"].get_ydata()).all()
    similarity = figures["similarity"].axes[0]
    assert lines(similarity)["mlp"].get_ydata() == pytest.approx([0.08, 0.04])
    shown = [float(each.get_text()) for each in similarity.get_yticklabels()]
    assert [1 - each for each in shown] == pytest.approx(similarity.get_yticks())
    lens = lines(figures["logit_lens"].axes[0])
    assert lens["KL from the whole model"].get_xdata().tolist() == [0, 2]


def test_what_is_gone_is_shaded_and_has_no_point():
    left = found("pruned", names=("attention.0", "mlp.1"))
    (axis,) = analysis_figures([left])["similarity"].axes
    assert np.isnan(lines(axis)["attention"].get_ydata()).tolist() == [False, True]
    gone = [each.get_x() + each.get_width() / 2 for each in axis.patches if each.get_label() == "removed"]
    assert sorted(gone) == [0.5, 1.0]


def test_models_stand_side_by_side_on_the_same_scales():
    models = [found(), found("far", size=50.0), found("pruned", names=("attention.0", "mlp.1")), found("fourth")]
    figures = analysis_figures(models)
    for name, figure in figures.items():
        assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["dense", "far", "pruned", "fourth"]
        assert len({axis.get_ylim() for axis in figure.axes[:4]}) == 1, name
        assert len({axis.get_xlim() for axis in figure.axes}) == 1, name
    low, high = figures["norms"].axes[0].get_ylim()
    assert low < 1
    assert high > 500


def test_the_folder_holds_pictures_tables_and_every_number(tmp_path):
    both = [found(), found("pruned|x", names=("attention.0", "mlp.1"))]
    files = write_analysis(tmp_path / "out", both, {"window": 4})
    assert {each.name for each in files} == {each.name for each in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out/norms.png").read_bytes().startswith(b"\x89PNG")
    data = from_json(json.loads((tmp_path / "out/analysis.json").read_text()))
    assert data["settings"] == {"window": 4}
    assert [Analysis.from_dict(each) for each in data["models"]] == both
    page = (tmp_path / "out/analysis.md").read_text()
    assert page == analysis_markdown(both)
    assert "| mlp.0 | 11 | 2 | 0.9200 | infinite | infinite | +2.000 | 20.00% |" in page
    assert "1,000 parameters; 2 of 4 sublayers; loss 2.0000 nats over 7 predicted tokens." in page


def test_a_note_is_written_and_an_absent_figure_left_empty():
    page = analysis_markdown([found(ri=(None,) * 4, paths=(), notes=("No paths.",))])
    assert "No paths." in page
    assert "| mlp.0 | 11 | 2 | 0.9200 |  |  |  |  |" in page
