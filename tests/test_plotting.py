"""Figures: what is drawn, on which scale, and what is refused."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh

from pyro_vaeflow.plots import maps as plotting
from pyro_vaeflow.plots.charts import plot_history, plot_schedules
from pyro_vaeflow.plots.maps import plot_points, plot_score_maps

AXIS = np.linspace(-1, 1, 21)
XX, YY = np.meshgrid(AXIS, AXIS)


def meshes(figure):
    """The score maps of a figure, without its colour bar."""
    found = [[c for c in axes.collections if isinstance(c, QuadMesh)] for axes in figure.axes]
    return [c[0] for axes, c in zip(figure.axes, found, strict=True) if c and axes.get_title()]


def rendered(figure) -> int:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.tell()


@pytest.fixture
def history():
    steps = np.arange(300)
    kl = 5 - 4 * np.exp(-steps / 50)
    frame = pd.DataFrame({"step": steps, "log_likelihood": -10 + steps / 100, "kl": kl})
    return frame.assign(
        elbo=frame["log_likelihood"] - kl,
        loss=10.0,
        anneal=1.0,
        grad_norm=3.0,
        held_out_elbo=np.where(steps % 100 == 99, -12.0, np.nan),
    )


def test_panels_share_one_scale_and_one_colour_bar():
    maps = {"a": (XX, YY, XX**2), "b": (AXIS, AXIS, 5 + YY)}
    figure = plot_score_maps(maps, reference=(XX, YY, XX - 3), label="A(x), nats")
    drawn = meshes(figure)
    assert len(drawn) == 3 and len(figure.axes) == 4
    assert {(m.norm.vmin, m.norm.vmax) for m in drawn} == {(-4.0, 6.0)}
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "true -log p(x)"]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes[:3])
    assert figure.axes[3].get_ylabel() == "A(x), nats"
    assert rendered(figure)


def test_values_land_where_their_coordinates_say():
    # Rows of values go with y, columns with x.
    values = np.zeros((21, 21))
    values[2, 17] = 1.0
    (mesh,) = meshes(plot_score_maps({"a": (XX, YY, values)}))
    array, corners = mesh.get_array().reshape(21, 21), mesh.get_coordinates()
    row, column = np.unravel_index(array.argmax(), array.shape)
    centre = corners[row : row + 2, column : column + 2].mean((0, 1))
    np.testing.assert_allclose(centre, [AXIS[17], AXIS[2]])


@pytest.mark.parametrize(
    ("limits", "extend"),
    [(None, "neither"), ((0.2, 2), "min"), ((-1, 0.5), "max"), ((0.2, 0.5), "both")],
)
def test_colour_bar_shows_that_values_lie_outside(limits, extend):
    figure = plot_score_maps({"a": (XX, YY, XX**2)}, limits=limits)
    assert meshes(figure)[0].colorbar.extend == extend


def test_linear_width_separates_values_over_decades():
    values = 10 ** (2 + 2 * XX)
    figure = plot_score_maps({"a": (XX, YY, values)}, linear_width=1.0)
    norm = meshes(figure)[0].norm
    assert norm(100.0) > 0.4  # on a linear scale it would be 0.01
    ticks = figure.axes[-1].get_yticks()
    assert {10.0, 100.0, 1000.0} <= set(ticks)
    assert rendered(figure)


def test_values_that_are_not_finite_stay_blank_and_a_constant_map_is_drawn():
    values = np.where(XX > 0, np.nan, YY)
    values[0, 0] = np.inf
    (mesh,) = meshes(plot_score_maps({"a": (XX, YY, values)}))
    assert mesh.get_array().mask.sum() == (XX > 0).sum() + 1
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-1.0, 1.0)
    assert rendered(plot_score_maps({"a": (XX, YY, np.ones_like(XX))}))


def test_colours_read_in_grey():
    red, green, blue, _ = matplotlib.colormaps[plotting.COLOURS](np.linspace(0, 1, 64)).T
    lightness = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize(
    ("panels", "options", "word"),
    [
        ({}, {}, "no finite value"),
        ({"a": (XX, YY, XX * np.nan)}, {}, "no finite value"),
        ({"odd": (XX, YY, XX[:5])}, {}, "map 'odd'"),
        ({"odd": (AXIS[:3], AXIS, XX)}, {}, "map 'odd'"),
        ({"odd": (XX, YY, AXIS)}, {}, "map 'odd'"),
        ({"a": (XX, YY, XX)}, {"limits": (1, 0)}, "limits"),
        ({"a": (XX, YY, XX)}, {"limits": (np.nan, 0)}, "limits"),
        ({"a": (XX, YY, XX)}, {"linear_width": 0}, "linear_width"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(panels, options, word):
    with pytest.raises(ValueError, match=word):
        plot_score_maps(panels, **options)


def test_points_are_drawn_as_they_are():
    points = np.random.default_rng(0).normal(size=(30, 2))
    figure = plot_points(points, title="data")
    (line,) = figure.axes[0].lines
    assert (line.get_xydata() == points).all()
    assert figure.axes[0].get_aspect() == 1
    with pytest.raises(ValueError, match=r"\(num_points, 2\), got \(30, 3\)"):
        plot_points(np.zeros((30, 3)))


def test_history_draws_each_curve_with_its_unit(history):
    figure = plot_history(history, title="run")
    assert len(figure.axes) == 6
    assert all(axes.get_xlabel() == "step" for axes in figure.axes)
    assert "nats" in figure.axes[0].get_ylabel()
    elbo = figure.axes[1]
    assert (elbo.lines[0].get_ydata() == history["elbo"]).all()
    assert elbo.lines[-1].get_xdata().tolist() == [99, 199, 299]
    assert rendered(figure)


def test_neither_first_steps_nor_poor_held_out_bounds_hide_the_rest(history):
    history.loc[299, "held_out_elbo"] = -500.0
    assert plot_history(history).axes[1].get_ylim()[0] <= -500.0
    history.loc[0, "loss"] = 1e9
    history.loc[100:, "loss"] = 20.0
    low, high = plot_history(history).axes[0].get_ylim()
    assert low < 10 and 20 < high < 30


def test_short_and_broken_histories(history):
    assert rendered(plot_history(history.head(1)))
    with pytest.raises(ValueError, match=r"missing columns \['kl'\]"):
        plot_history(history.drop(columns="kl"))
    with pytest.raises(ValueError, match="0 rows"):
        plot_history(history.head(0))


def test_schedules_are_drawn_over_their_steps():
    figure = plot_schedules({"up": lambda step: step / 10, "flat": lambda step: 1.0}, 11)
    up, flat = figure.axes[0].lines
    assert up.get_ydata() == pytest.approx(np.linspace(0, 1, 11))
    assert up.get_linestyle() != flat.get_linestyle()
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["up", "flat"]
    for schedules, num_steps in (({}, 5), ({"a": lambda step: 1.0}, 0)):
        with pytest.raises(ValueError, match="num_steps"):
            plot_schedules(schedules, num_steps)
