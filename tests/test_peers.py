"""Peers and controls: the laws that each keeps, what ours and theirs share, and their runs."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_vaeflow.datasets.splits import Split, first_of_each
from pyro_vaeflow.experiments import peers
from pyro_vaeflow.experiments.config import OF_PEERS, ExperimentConfig
from pyro_vaeflow.experiments.detection import detection
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.peer_detectors import distinct
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.experiments.report import write_tables
from pyro_vaeflow.experiments.results import finished_runs
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.study import parse_study
from pyro_vaeflow.experiments.tables import aggregate, by_class, read_summary
from pyro_vaeflow.experiments.tasks import TASKS, Task, load_task
from pyro_vaeflow.metrics import auroc, average_precision
from pyro_vaeflow.programs.fitting import check_registered
from pyro_vaeflow.validation import ConfigError

FEW_EPOCHS = {"pyod_vae": {"epoch_num": 3}}
PEER = ExperimentConfig(dataset="breast_cancer", preprocessing="standard", detector="knn1")


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Correlated inliers, some of them twice; the last test row breaks the correlation, far out."""
    draw = np.random.default_rng(0)
    inliers = draw.normal(size=(400, 2)) @ draw.normal(size=(2, 4))
    inliers = (inliers + 0.1 * draw.normal(size=inliers.shape)).astype(np.float32)
    far = np.array([[6.0, -6.0, 6.0, -6.0]], dtype=np.float32)
    return np.concatenate([inliers[:300], inliers[:50]]), np.concatenate([inliers[250:], far])


@pytest.mark.parametrize("name", PEERS)
def test_an_outlier_has_the_highest_score_and_the_same_seed_the_same_scores(name, rows) -> None:
    train, test = rows
    options = FEW_EPOCHS.get(name, {})
    scores = PEERS[name](0, **options).fit(train).anomaly_score(test)
    assert scores.shape == (len(test),)
    assert np.isfinite(scores).all()
    assert scores[-1] == scores.max()
    assert scores[-1] > np.median(scores[:50])  # these rows were trained on
    again = PEERS[name](0, **options).fit(train).anomaly_score(test)
    np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"ecod", "pyod_vae"}))
def test_a_rows_score_does_not_depend_on_the_rows_beside_it(name, rows) -> None:
    train, test = rows
    peer = PEERS[name](0).fit(train)
    both = np.concatenate([test[::-1], test])
    expected = peer.anomaly_score(test)
    found = peer.anomaly_score(both)
    np.testing.assert_allclose(found, np.concatenate([expected[::-1], expected]), rtol=1e-4)


def test_lookups_count_what_training_has_not_shown() -> None:
    train = np.array([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0]])
    test = np.array([[-0.0, 1.0], [0.0, 3.0], [0.0, 9.0], [8.0, 9.0]])
    assert PEERS["lookup"](0).fit(train).anomaly_score(test).tolist() == [0, 1, 1, 1]
    assert PEERS["novel_values"](0).fit(train).anomaly_score(test).tolist() == [0, 0, 1, 2]


def test_neighbours_are_distinct_rows() -> None:
    train = np.array([[0.0]] * 9 + [[1.0], [3.0], [4.0], [6.0]])
    test = np.array([[0.0], [0.5]])
    assert PEERS["knn1"](0).fit(train).anomaly_score(test).tolist() == [0.0, 0.5]
    assert PEERS["knn5"](0).fit(train).anomaly_score(test).tolist() == [6.0, 5.5]
    few = PEERS["knn5"](0).fit(train[:10])  # fewer distinct rows than neighbours: the farthest
    assert few.num_train_ == 2
    assert few.anomaly_score(test).tolist() == [1.0, 0.5]


def test_distinct_rows_come_in_order_and_give_all_rows_back() -> None:
    x = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.float32)
    kept, place = distinct(x)
    np.testing.assert_array_equal(kept[place], x)
    np.testing.assert_array_equal(kept, pd.DataFrame(x).drop_duplicates().to_numpy())


def test_copies_count_for_the_density(rows) -> None:
    train, test = rows  # the last 50 are copies
    all_rows, distinct_rows = (
        PEERS["lof"](0).fit(x).anomaly_score(test) for x in (train, train[:300])
    )
    assert not np.allclose(all_rows, distinct_rows)


@pytest.mark.parametrize("name", ["lof", "ocsvm", "pyod_vae"])
def test_a_cap_on_training_rows_is_kept(name, rows) -> None:
    options = {"max_train_rows": 64, **FEW_EPOCHS.get(name, {})}
    first, other = (PEERS[name](seed, **options).fit(rows[0]) for seed in (0, 1))
    assert first.num_train_ == other.num_train_ == 64
    assert not np.array_equal(first.anomaly_score(rows[1]), other.anomaly_score(rows[1]))


def test_pyods_vae_is_at_pyods_defaults() -> None:
    theirs = inspect.signature(pytest.importorskip("pyod.models.vae").VAE).parameters
    for name, ours in list(inspect.signature(peers.pyod_vae).parameters.items())[1:]:
        if name != "max_train_rows":
            same = theirs[name].default
            assert ours.default == (tuple(same) if isinstance(same, list) else same), name


def test_pyod_leaves_the_random_states_as_they_were(rows) -> None:
    before = pyro.util.get_rng_state()
    PEERS["pyod_vae"](0, epoch_num=1).fit(rows[0]).anomaly_score(rows[1])
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    np.testing.assert_array_equal(before["numpy"][1], after["numpy"][1])


def test_without_pyod_the_error_names_the_extra(rows, monkeypatch) -> None:
    def none(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers, "import_module", none)
    with pytest.raises(ImportError, match=r'install the extra: pip install .*"\.\[peers\]"'):
        PEERS["ecod"](0).fit(rows[0])


# Configurations and runs


def test_a_peers_configuration_covers_only_what_it_reads() -> None:
    vae = {"latent_dim": 3, "likelihood": "normal", "num_steps": 7, "annealing": {"kind": "linear"}}
    same = ExperimentConfig.from_dict({**PEER.to_dict(), **vae})
    assert same == PEER
    assert (same.digest, same.run_name) == (PEER.digest, PEER.run_name)
    assert list(PEER.to_dict()) == list(OF_PEERS)
    assert ExperimentConfig.from_yaml(PEER.to_yaml()) == PEER
    read = {"dataset": "ring", "split_seed": 3, "max_rows": 9, "preprocessing": "none"}
    read |= {"detector": "knn5", "detector_options": {"a": 1}}
    for name, value in read.items():
        assert replace(PEER, **{name: value}).digest != PEER.digest, name
    assert PEER.run_name.startswith("breast_cancer-knn1-seed0-")


def test_a_wrong_setting_is_refused_even_where_a_peer_would_not_read_it() -> None:
    with pytest.raises(ConfigError, match="latent_dim: expected at least 1"):
        ExperimentConfig(detector="knn1", latent_dim=0)
    with pytest.raises(ConfigError, match="unknown key 'latent'"):
        ExperimentConfig.from_dict({"detector": "knn1", "latent": 3})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"detector": "knn3"}, "unknown detector 'knn3', did you mean 'knn"),
        ({"detector_options": {"k": 3}}, "unknown option of knn1 'k'; allowed: none"),
        (
            {"detector": "pyod_vae", "detector_options": {"epochs": 3}},
            "allowed: preprocessing, epoch_num",
        ),
        ({"preprocessing": "rank"}, "allowed: none, mixed, minmax, standard, log-minmax, codes"),
    ],
)
def test_names_that_no_registry_holds_are_refused(change, said) -> None:
    with pytest.raises(ConfigError) as refused:
        check_registered(replace(PEER, **change))
    assert said in str(refused.value)


def test_ours_has_no_options_of_a_peer() -> None:
    with pytest.raises(ConfigError, match="detector=vaeflow has none"):
        ExperimentConfig(num_steps=1, detector_options={"epoch_num": 3})


def test_without_a_seed_of_its_own_the_split_follows_the_seed() -> None:
    follows = replace(PEER, split_seed=None, seed=3)
    fixed = replace(PEER, split_seed=3, seed=0)
    assert torch.equal(load_task(follows).x_test, load_task(fixed).x_test)
    assert not torch.equal(load_task(replace(follows, seed=4)).x_test, load_task(fixed).x_test)
    assert replace(follows, seed=4).digest == follows.digest


def test_a_study_runs_each_variant_on_each_data_set() -> None:
    text = """
        datasets: [ring, breast_cancer]
        num_steps: 1
        latent_dim: 3
        seeds: [0, 1]
        variants: [{flow: diagonal}, {detector: pyod_vae, detector_options: {epoch_num: 2}}]
        quick: {dataset: ring}
    """
    study = parse_study(text)
    configs = study.expand()
    assert [(c.dataset, c.detector, c.seed) for c in configs] == [
        (dataset, detector, seed)
        for dataset in ("ring", "breast_cancer")
        for detector in ("vaeflow", "pyod_vae")
        for seed in (0, 1)
    ]
    assert {c.dataset for c in study.expand(quick=True)} == {"ring"}
    assert len(study.expand({"dataset": "arrhythmia"}, seeds=[0])) == 2
    (peer,) = {c.detector for c in study.expand({"detector": "knn1"})}  # leaves its options behind
    assert peer == "knn1"
    again = study.expand({"latent_dim": 5})
    assert [a.run_name == c.run_name for a, c in zip(again, configs, strict=True)] == [
        c.is_peer for c in configs
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{datasets: [ring], dataset: ring, num_steps: 1}",
        "{datasets: [ring], num_steps: 1, variants: [{dataset: ring}]}",
    ],
)
def test_data_sets_are_named_in_one_place(text) -> None:
    with pytest.raises(ConfigError, match="datasets names them already"):
        parse_study(text)


# Distinct rows and classes


def make_split() -> Split:
    train = pd.DataFrame({"a": [0.0, 1.0], "b": ["x", "y"]})
    test = pd.DataFrame({"a": [0.0, 0.0, 5.0, 5.0, 0.0], "b": ["x", "x", "x", "x", "y"]}, [3] * 5)
    labels = np.array(["in", "in", "out", "in", "other"], dtype=object)
    return Split(train, test, np.array([0, 0, 1, 0, 1]), labels)


def test_the_first_of_rows_alike_in_columns_and_kind_is_kept(monkeypatch) -> None:
    assert first_of_each(make_split()).tolist() == [True, False, True, True, True]
    monkeypatch.setitem(TASKS, "five", lambda seed: make_split())
    task = load_task(replace(PEER, dataset="five", preprocessing="codes"))
    assert task.x_test.tolist() == [[0, 0], [0, 0], [-1, 0], [-1, 0], [0, 1]]
    assert task.is_first.tolist() == [True, False, True, True, True]
    metrics = run(replace(PEER, dataset="five", preprocessing="codes", detector="lookup")).metrics
    assert (metrics["num_distinct"], metrics["num_test"]) == (4, 5)


def test_distinct_rows_count_once_whatever_their_number() -> None:
    draw = np.random.default_rng(0)
    truth, score = np.repeat([0, 1], [40, 20]), draw.normal(size=60)
    copies = np.repeat(np.arange(60), draw.integers(1, 5, 60))
    first = np.concatenate([[True], copies[1:] != copies[:-1]])
    x = torch.zeros(len(copies), 1)
    task = Task(x, x, truth[copies], truth[copies].astype(str), first)
    found = detection(task, {"s": score[copies]})
    assert found["num_distinct"] == 60
    assert found["scores"]["s"]["auroc_distinct"] == pytest.approx(auroc(truth, score))
    ap = found["scores"]["s"]["average_precision_distinct"]
    assert ap == pytest.approx(average_precision(truth, score))
    assert found["scores"]["s"]["auroc"] != pytest.approx(auroc(truth, score))
    assert "classes" not in found  # of two classes recall says all


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Ours beside two peers, two seeds, on rows of three classes, some of them repeated."""
    draw = np.random.default_rng(0)
    x = pd.DataFrame(draw.normal(size=(120, 3)))
    x.iloc[60:80] += 9.0
    labels = np.repeat(np.array(["web", "dos", "mail"], dtype=object), [60, 20, 40])
    test = pd.concat([x, x.iloc[:30]])
    names = np.concatenate([labels, labels[:30]])
    split = Split(x.iloc[80:], test, (names == "dos").astype(int), names)
    out = tmp_path_factory.mktemp("study")
    text = """
        dataset: three
        preprocessing: standard
        num_steps: 3
        num_samples: 3
        seeds: [0, 1]
        variants: [{detector: knn1}, {detector: lookup, preprocessing: codes}, {flow: diagonal}]
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "three", lambda seed: split)
        configs = parse_study(text, "mine").expand()
        assert len(run_all(configs, out, progress=False).finished) == 6
        assert len(run_all(configs, out, progress=False).skipped) == 6
    write_tables(out)
    return out


def test_a_peers_folder_holds_its_score_and_no_parameters(study) -> None:
    (peer,) = [r for r in finished_runs(study) if r.config.run_name.startswith("three-knn1-seed1")]
    names = {path.name for path in peer.folder.iterdir()}
    assert names == {"config.yaml", "metrics.json", "scores.npz"}
    with np.load(peer.folder / "scores.npz", allow_pickle=False) as kept:
        assert set(kept) == {"is_anomaly", "own"}
        assert auroc(kept["is_anomaly"], kept["own"]) == peer.metrics["scores"]["own"]["auroc"]
    with pytest.raises(ConfigError, match="a run of the peer knn1; it has no programs"):
        load_programs(peer.folder)


def test_ours_and_peers_stand_in_one_table_ours_first(study) -> None:
    table = read_summary(study)
    assert table["flow"].unique().tolist() == ["diagonal", "lookup", "knn1"]
    assert table[table["flow"] == "knn1"]["elbo"].isna().all()
    shown = aggregate(table).set_index(["flow", "score"])
    assert shown.loc[("knn1", "own"), "AUROC"] == "1.0000 ± 0.0000"
    assert shown.loc[("knn1", "own"), "ELBO"] == ""
    assert "±" in shown.loc[("diagonal", "importance"), "ELBO"]
    assert "nan" not in shown.to_string()
    text = (study / "table.md").read_text()
    assert "- knn1: Distance to the nearest distinct training row." in text
    assert "AUROC, distinct rows" in text
    assert "pyod 3" in text
    assert "latent_dim" not in text.split("peers:")[1]
    read = pd.read_csv(study / "summary.csv")
    pd.testing.assert_frame_equal(aggregate(read), aggregate(table))


def test_the_share_flagged_of_each_class_is_its_mean_over_seeds(study) -> None:
    table = pd.read_csv(study / "by_class.csv")
    knn1 = table[table["flow"] == "knn1"].set_index("class")
    assert knn1["rows"].to_dict() == {"dos": 20, "mail": 40, "web": 90}
    assert knn1["is_anomaly"].to_dict() == {"dos": 1, "mail": 0, "web": 0}
    assert knn1["flagged"].to_dict() == {"dos": 1.0, "mail": 0.0, "web": 0.0}
    ours = table[(table["flow"] == "diagonal") & (table["score"] == "importance")]
    runs = [r.metrics for r in finished_runs(study) if not r.config.is_peer]
    means = np.mean([[*m["flagged_by_class"]["importance"].values()] for m in runs], axis=0)
    assert ours["flagged"].tolist() == pytest.approx(means, rel=1e-5)
    for metrics in runs:  # as many are flagged as are anomalies
        shares = metrics["flagged_by_class"]["importance"]
        assert sum(metrics["classes"][c] * share for c, share in shares.items()) == pytest.approx(
            20
        )
    assert by_class([]).empty
