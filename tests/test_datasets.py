"""Data sets beside KDD, the ring with its density, and the splits."""

import os
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.io
from sklearn.model_selection import train_test_split

from pyro_vaeflow.datasets.registry import (
    adbench_names,
    load_adbench,
    load_arrhythmia,
    load_breast_cancer_table,
)
from pyro_vaeflow.datasets.ring import make_ring, ring_log_density
from pyro_vaeflow.datasets.splits import Dataset, holdout_split, one_class_split

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 0, 0])


@pytest.fixture
def home(tmp_path):
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "7_Small.npz", X=X, y=Y)
    scipy.io.savemat(tmp_path / "arrhythmia.mat", {"X": X, "y": Y[:, None]})
    return tmp_path


# The ring


def test_ring_is_the_inner_circle():
    x = make_ring(10_000, noise=0.01, seed=0).numpy()
    radius = np.hypot(*x.T)
    assert x.shape == (5000, 2) and x.dtype == np.float32
    # The outer circle has radius 1. Five standard errors: 5 * 0.01 / sqrt(5000) = 0.0007.
    assert radius.mean() == pytest.approx(0.8, abs=0.0008)
    assert radius.std() == pytest.approx(0.01, rel=0.05)
    assert make_ring(100, seed=0).equal(make_ring(100, seed=0))
    assert not make_ring(100, seed=0).equal(make_ring(100, seed=1))


@pytest.mark.parametrize("point", [(0.8, 0.0), (0.5, 0.6), (0.0, 0.0), (-0.9, 0.3)])
def test_ring_density_is_the_average_over_angles(point):
    noise, radius = 0.1, 0.7

    def gaussian(angle):
        distance = np.sum((point - radius * np.array([np.cos(angle), np.sin(angle)])) ** 2)
        return np.exp(-distance / (2 * noise**2)) / (2 * np.pi * noise**2) / (2 * np.pi)

    expected = scipy.integrate.quad(gaussian, 0, 2 * np.pi, epsabs=0, limit=200)[0]
    log_density = ring_log_density(np.array(point), noise, radius)
    assert log_density == pytest.approx(np.log(expected), abs=1e-9)


def test_ring_density_integrates_to_one_and_fits_the_sample():
    # In polar distance, where all of the mass is; the mean of -entropy is the expectation.
    rho = np.linspace(0.7, 0.9, 20_001)
    log_density = ring_log_density(np.stack([rho, 0 * rho], axis=-1))
    mass = 2 * np.pi * rho * np.exp(log_density)
    assert scipy.integrate.trapezoid(mass, rho) == pytest.approx(1.0, abs=1e-6)
    expected = scipy.integrate.trapezoid(mass * log_density, rho)
    sample = ring_log_density(make_ring(100_000, seed=3))
    assert expected == pytest.approx(1.5715, abs=1e-3)
    assert sample.mean() == pytest.approx(expected, abs=5 * sample.std() / len(sample) ** 0.5)
    far = ring_log_density(np.array([[1e3, 0.0], [0.0, 0.0]]))
    assert np.isfinite(far).all()
    assert far[0] == pytest.approx(-((1e3 - 0.8) ** 2) / 2e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: make_ring(1), "num_points"),
        (lambda: make_ring(noise=0.0), "noise"),
        (lambda: ring_log_density(np.zeros((4, 3))), "points"),
        (lambda: ring_log_density(np.zeros(2), noise=-1.0), "noise"),
        (lambda: ring_log_density(np.zeros(2), radius=np.nan), "radius"),
    ],
)
def test_ring_names_a_bad_argument(call, argument):
    with pytest.raises(ValueError, match=argument):
        call()


# Tables


def test_breast_cancer_takes_malignant_as_anomaly():
    data = load_breast_cancer_table()
    assert data.X.shape == (569, 30)
    assert ((data.labels == "malignant") == (data.y == 1)).all()
    assert int(data.y.sum()) == 212
    # Malignant nuclei are larger: catches labels that were swapped.
    assert data.X["mean area"][data.y == 1].mean() > 2 * data.X["mean area"][data.y == 0].mean()


def test_sets_are_found_by_name_and_those_at_hand_are_named(home):
    for name in ("small", "SMALL", "7_Small"):
        data = load_adbench(name, home)
        assert data.name == "small"
        assert (data.X.to_numpy() == X).all()
        assert data.y.tolist() == Y.tolist()
        assert data.labels.tolist() == ["normal", "anomaly", "normal", "normal"]
    matlab = load_arrhythmia(home)
    assert (matlab.X.to_numpy() == X).all() and matlab.y.tolist() == Y.tolist()
    for name in ("other", "../adbench/7_Small", ""):
        with pytest.raises(FileNotFoundError, match="at hand: small.*VAEFLOW_DATA"):
            load_adbench(name, home)


def test_missing_folders_and_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"adbench.*github.com.*data_home"):
        adbench_names(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"arrhythmia.mat.*odds"):
        load_arrhythmia(tmp_path)
    monkeypatch.delenv("VAEFLOW_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="neither data_home nor VAEFLOW_DATA"):
        load_arrhythmia()


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_content_is_refused_and_not_run(home):
    trap = home / "trap"
    content = {"X": np.array([[Hostile(trap)]], dtype=object), "y": np.array([0])}
    np.savez(home / "adbench" / "7_Small.npz", allow_pickle=True, **content)
    with pytest.raises(ValueError, match=r"7_Small.npz holds no table"):
        load_adbench("small", home)
    (home / "adbench" / "7_Small.npz").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"7_Small.npz holds no table"):
        load_adbench("small", home)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"X": X},
        {"X": X, "y": Y[:3]},
        {"X": X, "y": Y + 1},
        {"X": X[0], "y": Y},
        {"X": X.astype(str), "y": Y},
        {"X": X, "y": np.array([0, 1, np.nan, 0])},
        {"X": X, "y": np.array([0.0, 1.0, 0.5, 0.0])},
    ],
)
def test_file_without_a_labelled_table_is_refused(home, content):
    np.savez(home / "adbench" / "7_Small.npz", **content)
    with pytest.raises(ValueError, match=r"7_Small.npz holds no table .*ADBench"):
        load_adbench("small", home)


def test_files_at_hand():
    if not os.environ.get("VAEFLOW_DATA"):
        pytest.skip("VAEFLOW_DATA does not name a folder with ADBench and ODDS files")
    assert len(adbench_names()) == 18
    thyroid, arrhythmia = load_adbench("thyroid"), load_arrhythmia()
    assert (thyroid.X.shape, int(thyroid.y.sum())) == ((3772, 6), 93)
    assert (arrhythmia.X.shape, int(arrhythmia.y.sum())) == ((452, 274), 66)


# Splits


def table(num_data=100, share=0.3, seed=0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = (rng.random(num_data) < share).astype(int)
    return Dataset("t", pd.DataFrame({"row": np.arange(num_data)}), y, np.where(y, "odd", "even"))


@pytest.mark.parametrize("split", [holdout_split, one_class_split])
def test_splits_train_on_inliers_and_keep_rows_apart(split):
    data = table()
    parts = split(data, seed=3)
    train, test = parts.X_train["row"].to_numpy(), parts.X_test["row"].to_numpy()
    assert (data.y[train] == 0).all()
    assert not set(train) & set(test)
    assert (parts.y_test == data.y[test]).all()
    assert (parts.labels_test == data.labels[test]).all()
    again, other = split(data, seed=3), split(data, seed=4)
    assert again.X_train.equals(parts.X_train) and again.X_test.equals(parts.X_test)
    assert set(other.X_train["row"]) != set(train)


def test_splits_hold_out_what_they_say():
    data = table()
    parts = one_class_split(data, train_fraction=0.25)  # every anomaly and the other inliers
    inliers = int((data.y == 0).sum())
    assert len(parts.X_train) == inliers // 4
    assert len(parts.X_test) == 100 - inliers // 4
    assert parts.y_test.sum() == data.y.sum()
    parts = holdout_split(data, test_size=0.4, seed=7)  # the rows of scikit-learn
    train, test = train_test_split(data.X, test_size=0.4, random_state=7)
    assert parts.X_test.equals(test)
    assert parts.X_train.equals(train[data.y[train["row"]] == 0])


def test_splits_and_tables_name_what_is_wrong():
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="test_size"):
            holdout_split(table(), test_size=share)
        with pytest.raises(ValueError, match="train_fraction"):
            one_class_split(table(), train_fraction=share)
    for split in (holdout_split, one_class_split):
        with pytest.raises(ValueError, match="inlier"):
            split(table(share=1.1))
    frame = pd.DataFrame({"a": [1, 2]})
    with pytest.raises(ValueError, match="lengths differ"):
        Dataset("t", frame, np.array([0]), np.array(["n"]))
    with pytest.raises(ValueError, match=r"y must be 0 .inlier. or 1"):
        Dataset("t", frame, np.array([0, 2]), np.array(["n", "n"]))
