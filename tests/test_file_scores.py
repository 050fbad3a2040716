"""Scores of files: laws of the folder, kills at every moment, refusals, worker processes."""

import json
import os
from concurrent.futures import BrokenExecutor, Future
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.cli import main
from pyro_vaeflow.files.score import score_chunk, score_files
from pyro_vaeflow.validation import ConfigError
from pyro_vaeflow.workers import Here
from tests.processes import ForkedPool, dask_cluster, die, is_killed

QUICK = {
    "num_steps": 20,
    "num_samples": 30,
    "hidden_dims": (8,),
    "latent_dim": 2,
    "random_state": 0,
}


def table(num_rows: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(size=num_rows)
    frame = pd.DataFrame({"id": [f"r{n:03d}" for n in range(num_rows)], "size": size})
    frame["twice"] = 2 * size + 0.1 * rng.normal(size=num_rows)
    frame["kind"] = np.where(rng.random(num_rows) < 0.3, "a", "b")
    frame["length"] = rng.normal(size=num_rows)
    frame.loc[5, ["size", "twice"]] = 40.0, -40.0
    frame.loc[7, "size"] = np.nan
    return frame


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    detector = VAEFlowDetector(**QUICK, contamination=0.1, calibration_share=0.0).fit(
        table().drop(columns="id")
    )
    detector.save(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two csv files, the second with two bad rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    table()[:50].to_csv(folder / "a.csv", index=False)
    lines = table()[50:].to_csv(index=False).splitlines()
    lines[3] += ",more"
    lines[10] = "r059,huge,1,a,2"
    (folder / "b.csv").write_text("\n".join(lines) + "\n")
    return folder


def read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out)


def same(one: Path, other: Path) -> None:
    """Row by row, bit by bit, and the rejects too."""
    pd.testing.assert_frame_equal(read(one), read(other), check_exact=True)
    assert (one / "_rejects.csv").read_bytes() == (other / "_rejects.csv").read_bytes()


def test_the_scores_are_those_of_the_detector(model: Path, tmp_path: Path) -> None:
    table().astype({"kind": "category"}).to_parquet(tmp_path / "t.parquet")
    done = score_files(model, str(tmp_path / "t.parquet"), tmp_path / "out", row_id="id")
    found, frame = read(tmp_path / "out"), table()
    detector = VAEFlowDetector.load(model)
    features = frame.drop(columns="id")
    details, nats = detector.score_details(features), detector.explain(features)
    assert found["id"].tolist() == frame["id"].tolist()
    assert found["row"].tolist() == list(range(1, 91))
    np.testing.assert_array_equal(found["anomaly_score"], -detector.score_samples(features))
    for name in ("stderr", "ess", "khat"):
        np.testing.assert_array_equal(found[name], details[name])
    assert found["khat"].notna().any()
    np.testing.assert_array_equal(found["flagged"], detector.predict(features) == -1)
    assert done.num_flagged == found["flagged"].sum() > 0
    ordered = np.sort(nats, axis=1)[:, ::-1]
    for rank in range(3):
        np.testing.assert_array_equal(found[f"nats_{rank + 1}"], ordered[:, rank])
        named = [nats.loc[n, name] for n, name in enumerate(found[f"column_{rank + 1}"])]
        np.testing.assert_array_equal(named, ordered[:, rank])
    assert {"size", "twice"} == set(found.loc[5, ["column_1", "column_2"]])


def test_chunks_and_formats_change_no_score(model: Path, data: Path, tmp_path: Path) -> None:
    for chunk_rows in (7, 1000):
        score_files(model, str(data), tmp_path / str(chunk_rows), chunk_rows=chunk_rows)
    one, other = read(tmp_path / "7"), read(tmp_path / "1000")
    # Not bit by bit: sums of matrices of other sizes round otherwise, in the last digits.
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-10, atol=1e-10)
    table()[:50].to_parquet(tmp_path / "a.parquet")
    score_files(model, str(tmp_path / "a.parquet"), tmp_path / "p")
    parts = one[one["file"] == "a.csv"].drop(columns="file"), read(tmp_path / "p")
    pd.testing.assert_frame_equal(parts[0], parts[1].drop(columns="file"), rtol=1e-10, atol=1e-10)


def test_bad_rows_are_rejected_and_the_others_scored(model, data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["score", str(model), str(data), str(out), "--id", "id"]) == 3
    assert "88 rows scored" in (said := capsys.readouterr()).out
    assert "2 rejected" in said.out and "_rejects.csv" in said.err
    assert set(table()["id"]) - set(read(out)["id"]) == {"r052", "r059"}
    rejects = pd.read_csv(out / "_rejects.csv")
    assert rejects["file"].tolist() == ["b.csv", "b.csv"]
    assert rejects["row"].tolist() == [3, 10]
    assert rejects["reason"].tolist() == ["Expected 5 columns, got 6", "is no number"]
    assert rejects["column"].tolist()[1:] == ["size"]
    lines = (data / "b.csv").read_text().splitlines()
    assert rejects["value"].tolist() == [lines[3], "huge"]
    assert main(["score", str(model), str(data / "a.csv"), str(tmp_path / "good")]) == 0


def test_columns_are_named_of_the_rows_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    for explain in ("all", "flagged", "none"):
        score_files(model, str(data / "a.csv"), tmp_path / explain, explain=explain)
    found = {explain: read(tmp_path / explain) for explain in ("all", "flagged", "none")}
    flagged = found["all"]["flagged"]
    assert 0 < flagged.sum() < len(flagged)
    assert found["none"]["column_1"].isna().all() and found["none"]["nats_1"].isna().all()
    named = found["flagged"]["column_1"]
    assert named.notna().equals(flagged)
    assert named[flagged].equals(found["all"]["column_1"][flagged])
    pd.testing.assert_series_equal(found["none"]["khat"], found["all"]["khat"], check_exact=True)


def killed_at(call: str, number: int, before: bool, *arguments) -> None:
    """Scores, and kills its own process at a call of `os` that writes."""
    plain, count = getattr(os, call), 0

    def counted(*given):
        nonlocal count
        count += 1
        if before and count == number:
            die()
        result = plain(*given)
        if count == number:
            die()
        return result

    setattr(os, call, counted)
    model, data, out = arguments
    score_files(model, data, out, chunk_rows=9)


def test_a_kill_at_any_moment_loses_no_row_and_scores_none_twice(model, data, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    score_files(model, str(data), whole, chunk_rows=9)
    parts = {path.name: path.read_bytes() for path in whole.glob("part-*")}
    assert len(parts) == 11
    finished = []
    # (what is called, which call of it, before it or after): a file is fsynced, renamed, and its
    # folder fsynced. The first three kills fall on the manifest, others on rejects and parts.
    for moment in [
        ("fsync", 1, True),
        ("replace", 1, True),
        ("replace", 1, False),
        ("fsync", 3, False),
        ("replace", 2, True),
        ("replace", 4, False),
        ("replace", 1, True),
    ]:
        assert is_killed(killed_at, *moment, model, str(data), out)
        there = {path.name: path for path in out.glob("part-*")}
        assert all(path.read_bytes() == parts[name] for name, path in there.items())
        finished.append(len(there))
    assert finished == sorted(finished) and 0 < finished[-1] < 11
    assert list(out.glob(".*.partial"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert main(["score", str(model), str(data), str(out), "--chunk_rows", "9"]) == 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == parts
    same(out, whole)
    assert not list(out.rglob(".*"))


def test_another_model_input_or_setting_is_refused_by_name(model, data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    call = ["score", str(model), str(data), str(out), "--id", "id"]
    main(call)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}

    def refused(call: list[str]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(call)
        assert stopped.value.code == 2
        assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
        return capsys.readouterr().err.splitlines()[-1]

    assert "another setting: id='id', not None" in refused(call[:-2])
    assert "another setting: chunk_rows=65536, not 5" in refused([*call, "--chunk_rows", "5"])
    other = tmp_path / "other"
    VAEFlowDetector(**QUICK | {"num_steps": 21}).fit(table().drop(columns="id")).save(other)
    assert "scores of another model" in refused(["score", str(other), *call[2:]])
    text = (data / "a.csv").read_text()
    (data / "a.csv").write_text(text.replace("r001", "r901"))
    assert "another input: 'a.csv' has changed" in refused(call)
    (data / "a.csv").write_text(text)
    (data / "c.csv").write_text(text)
    assert "another input: 'c.csv' is new" in refused(call)
    (data / "c.csv").unlink()
    (data / "b.csv").rename(tmp_path / "b.csv")
    assert "another input: 'b.csv' is gone" in refused(call)
    (tmp_path / "b.csv").rename(data / "b.csv")
    assert main(call) == 3  # as it was
    manifest = json.loads((out / "_manifest.json").read_text())
    for content, said in [
        (json.dumps(manifest | {"format": 0}), "has format 0, this version reads 1"),
        (json.dumps({"format": 1}), "is damaged"),
        ("{", "is damaged"),
    ]:
        (out / "_manifest.json").write_text(content)
        before[out / "_manifest.json"] = content.encode()
        assert said in refused(call)


def test_wrong_calls_are_refused_before_anything_is_written(model, data, tmp_path, capsys) -> None:
    frame = table()
    frame.drop(columns="size").to_csv(tmp_path / "lacks.csv", index=False)
    frame.astype({"size": str}).to_parquet(tmp_path / "text.parquet")
    frame.astype({"size": str}).astype({"size": "category"}).to_parquet(tmp_path / "levels.parquet")
    frame.assign(kind=pd.Timestamp("2020-01-01")).to_parquet(tmp_path / "dates.parquet")
    frame.rename(columns={"id": "row"}).to_csv(tmp_path / "row.csv", index=False)
    array = tmp_path / "array"
    VAEFlowDetector(**QUICK).fit(frame[["size", "length"]].fillna(0.0).to_numpy()).save(array)
    capsys.readouterr()
    out = tmp_path / "out"
    for arguments, said in [
        ([model, tmp_path / "lacks.csv", out], r"lacks.csv lacks the columns ['size']"),
        ([model, tmp_path / "text.parquet", out], "column 'size' of"),
        ([model, tmp_path / "dates.parquet", out], "column 'kind' of"),
        ([model, tmp_path / "levels.parquet", out], "it should hold numbers"),
        ([model, tmp_path / "row.csv", out, "--id", "row"], "have a column 'row' of their own"),
        ([model, data, out, "--id", "key"], "lacks the columns ['key']"),
        ([model, data, data / "out"], "is inside the input"),
        ([model, data, tmp_path], "is there and holds no scores"),
        ([tmp_path, data, out], "no model in"),
        ([array, data, out], "fitted to an array"),
        ([model, data, out, "--jobs", "0"], "jobs"),
        ([model, data, out, "--jobs", "2", "--dask", "tcp://x:1"], "give one of --jobs and --dask"),
        ([model, data, out, "--explain", "some"], "choose from 'all', 'flagged', 'none'"),
        ([model, data, out, "--rows", "5"], "allowed: --help"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["score", *map(str, arguments)])
        found = capsys.readouterr().err
        assert stopped.value.code == 2 and said in found, found
        assert not out.exists() and not (data / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(model, data, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["score", str(model), str(data), str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vaeflow: ") and "what is finished is kept" in said


def test_a_file_that_changes_meanwhile_is_an_error(model, data, tmp_path, monkeypatch) -> None:
    from pyro_vaeflow.files import score as module

    plain = module.score_chunk

    def disturbed(*arguments):
        (data / "a.csv").touch()
        return plain(*arguments)

    monkeypatch.setattr(module, "score_chunk", disturbed)
    with pytest.raises(ConfigError, match="a.csv changed while it was scored; remove"):
        score_files(model, str(data), tmp_path / "out")


def test_fit_writes_a_model_that_scores(data: Path, tmp_path: Path, capsys) -> None:
    model = tmp_path / "model"
    call = ["fit", str(data), "--out", str(model), "--id", "id", "--drop", "length"]
    call += ["--num_steps", "20", "--num_samples", "30", "--hidden_dims", "[8]", "--seed", "3"]
    assert main([*call, "--kinds.twice", "continuous"]) == 0
    said = capsys.readouterr()
    assert "trained on 88 of 89 rows: 2 columns of numbers, 1 of texts (kind)" in said.out
    assert "left out 1 rows: column 'size' is no number" in said.err
    detector = VAEFlowDetector.load(model)
    assert list(detector.feature_names_in_) == ["size", "twice", "kind"]
    assert (detector.seed_, detector.hidden_dims, detector.progress) == (3, (8,), False)
    assert main(["score", str(model), str(data), str(tmp_path / "out")]) == 3
    good = pd.concat([table()[:52], table()[53:59], table()[60:]])
    expected = VAEFlowDetector(**QUICK | {"random_state": 3, "latent_dim": None})
    expected.set_params(kinds={"twice": "continuous"})
    features = good[["size", "twice", "kind"]]
    scores = expected.fit(features).score_samples(features)
    np.testing.assert_allclose(-scores, read(tmp_path / "out")["anomaly_score"], rtol=1e-10)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--drop", "label"], "unknown column to leave out 'label'"),
        (["--drop", "size", "twice", "kind", "length"], "is left to learn from"),
        (["--rows", "0"], "rows"),
        (["--flow", "spiral"], "cannot fit: "),
        (["--contamination", "0.9"], "contamination: expected more than 0 and at most 0.5"),
        (["--latent", "2"], "allowed: --help"),
        (["--out", __file__], "test_file_scores.py is no folder that can be written to"),
        (["--out", f"{__file__}/model"], "test_file_scores.py is no folder that can be written"),
    ],
)
def test_a_wrong_fit_is_refused_in_one_line(data, tmp_path, capsys, extra, said) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", str(data), "--out", str(tmp_path / "m"), "--id", "id", *extra])
    found = capsys.readouterr().err
    assert stopped.value.code == 2 and said in found, found
    assert not (tmp_path / "m").exists()


class Dying(Here):
    """An executor whose processes die: of each chunk, so many."""

    def __init__(self, deaths: int) -> None:
        self.left = dict.fromkeys(range(4), deaths)

    def submit(self, fn, /, job, number, chunk):
        if not self.left[number]:
            return super().submit(fn, job, number, chunk)
        self.left[number] -= 1
        future: Future = Future()
        future.set_exception(BrokenExecutor())
        return future


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_chunk_whose_worker_died_is_scored_again(
    deaths: int, model, data, tmp_path, monkeypatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    score_files(model, str(data), whole, chunk_rows=30)
    monkeypatch.setattr("pyro_vaeflow.files.score.workers", lambda *_: nullcontext(Dying(deaths)))
    if deaths < 3:
        assert score_files(model, str(data), out, chunk_rows=30).num_parts == 4
        same(whole, out)
    else:
        with pytest.raises(ChildProcessError, match="at the 30 rows of a.csv from row 1:"):
            score_files(model, str(data), out, chunk_rows=30)


def score_that_dies_once(job, number, chunk) -> int:
    mark = Path(job.out).parent / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        die()
    return score_chunk(job, number, chunk)


def test_workers_write_the_same_parts_though_one_is_killed(
    model, data, tmp_path, monkeypatch
) -> None:
    score_files(model, str(data), tmp_path / "one", chunk_rows=9)
    monkeypatch.setattr("pyro_vaeflow.files.score.score_chunk", score_that_dies_once)
    monkeypatch.setattr("pyro_vaeflow.workers.ProcessPoolExecutor", ForkedPool)
    with dask_cluster() as address:
        for name, workers in {"forks": {"jobs": 2}, "cluster": {"dask": address}}.items():
            (tmp_path / name).mkdir()
            out = tmp_path / name / "out"
            done = score_files(model, str(data), out, chunk_rows=9, **workers)
            assert (tmp_path / name / "died").exists()
            assert (done.num_scored, done.num_parts, done.num_resumed) == (88, 11, 0)
            same(tmp_path / "one", out)
