"""The page of a study or a detector, opened in a real browser, and event files of runs."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow import Guide, Model, TensorBoard, VAEFlowDetector, train, watching
from pyro_vaeflow.cli import main
from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.report import write_tables
from pyro_vaeflow.plots.html_page import MAX_ROWS, Page
from pyro_vaeflow.plots.html_report import labels, study_page, write_report
from pyro_vaeflow.validation import ConfigError

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium to open pages in: apt-get install chromium"
)
RING = ExperimentConfig(
    dataset="ring", preprocessing="none", likelihood="normal", latent_dim=2, encoder_dims=(16,),
    decoder_dims=(16,), dropout=0.0, num_steps=30, num_samples=10, max_rows=200,
    gaps=GapSettings(rows=4, num_steps=1, draws_per_step=2, num_samples=10),
)  # fmt: skip


def chromium(page: Path, *options: str) -> str:
    call = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *options, page.as_uri()]
    return subprocess.run(call, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a <i>study & more"
    flow = replace(RING, flow="planar", num_flows=2)
    configs = [RING, replace(RING, seed=1), flow, replace(flow, latent_dim=3)]
    run_all(configs, folder, command="vaeflow run <script>alert(1)</script>", progress=False)
    write_tables(folder)
    return folder


@needs_browser
def test_a_browser_shows_the_page(out: Path, tmp_path: Path) -> None:
    path = write_report(out)
    assert path == out / "report.html"
    seen = chromium(path, "--dump-dom")
    assert "<title>a &lt;i&gt;study &amp; more</title>" in seen
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", seen)
    assert headings == ["Detection", "Gaps", "Training", "Scores", "All numbers", "Made by"]
    assert seen.count("<img") == seen.count("<figcaption>") == 5
    assert all(name in seen for name in ("<td>diagonal</td>", "<td>planar</td>", "0.", "AUROC"))
    shot = tmp_path / "page.png"
    chromium(path, f"--screenshot={shot}", "--window-size=1000,1600")
    pixels = matplotlib.image.imread(shot)
    assert pixels.shape[:2] == (1600, 1000)
    dark = (pixels[..., :3].mean(-1) < 0.5).mean(1) > 0  # lines with ink: figures are drawn
    assert dark[300:].mean() > 0.4


def test_the_page_needs_nothing_and_runs_nothing(out: Path) -> None:
    html = study_page(out).html()
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|@import|<link|url\(", html)
    assert {source[:11] for source in re.findall(r'src="([^"]*)"', html)} == {"data:image/"}
    assert "default-src 'none'" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "<i>" not in html


def test_without_its_runs_the_page_says_what_is_missing(out: Path, tmp_path: Path) -> None:
    shutil.copy(out / "summary.csv", tmp_path)
    figures = tmp_path / "figures"
    figures.mkdir()
    matplotlib.image.imsave(figures / "map_of_it.png", np.zeros((4, 4)))
    pd.DataFrame({"class": ["<u>"], "flagged": [0.5]}).to_csv(tmp_path / "by_class.csv")
    html = study_page(tmp_path).html()
    assert "no training curves" in html and "Training</h2>" not in html
    assert "map of it" in html and "&lt;u&gt;" in html
    shown = re.findall(r'<td class="n">([\d.]+)', study_page(out).html())
    assert shown[:9] == re.findall(r'<td class="n">([\d.]+)', html)[:9]


def test_labels_say_what_tells_runs_apart_and_no_more(out: Path) -> None:
    table = pd.DataFrame(
        {
            "dataset": "a", "flow": ["diagonal", "iaf", "iaf", "iaf"], "num_flows": [0, 5, 5, 5],
            "latent_dim": [2, 2, 8, 8], "likelihood": ["mixed"] * 3 + ["bernoulli"],
            "preprocessing": ["mixed"] * 3 + ["minmax"],
        }
    )  # fmt: skip
    assert labels(table) == [
        "diagonal, latent_dim 2", "IAF 5, latent_dim 2", "IAF 5, latent_dim 8",
        "IAF 5, latent_dim 8, likelihood bernoulli",
    ]  # fmt: skip


def test_a_long_table_ends_with_its_length() -> None:
    page = Page("t")
    page.table(pd.DataFrame({"n": range(MAX_ROWS + 5), "name": "x"}))
    html = page.html()
    assert html.count("<tr>") == MAX_ROWS + 1
    assert f"The first {MAX_ROWS} of {MAX_ROWS + 5} rows." in html
    assert '<th class="n">n</th><th>name</th>' in html


def test_a_saved_detector_has_a_page(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"size <mm>": np.random.default_rng(0).normal(size=80), "kind": ["a"] * 80}
    )
    VAEFlowDetector(num_steps=5, random_state=0).fit(frame).save(tmp_path / "model")
    assert main(["report", str(tmp_path / "model"), "--out", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert "size &lt;mm&gt;" in html and html.count("<img") == 2 and "num_steps: 5" in html


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        write_report(tmp_path / "none")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["history.csv", "scores.npz", "metrics.json"])
def test_a_damaged_run_is_named(name: str, out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "study")
    damaged = min((tmp_path / "study" / "runs").glob(f"[!.]*/{name}"))
    damaged.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{damaged.parent.name}/{name} is no"):
        study_page(tmp_path / "study")


def test_a_damaged_detector_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    VAEFlowDetector(num_steps=2, random_state=0).fit(np.eye(20, 3)).save(tmp_path)
    (tensors,) = tmp_path.glob("tensors-*")
    content = tmp_path / "detector.json"
    for damage, said in [
        (lambda: tensors.write_bytes(b""), f"{tensors} was changed after it was saved"),
        (tensors.unlink, f"{tensors} is not there"),
        (lambda: content.write_text("{"), f"{content} is not JSON"),
    ]:
        damage()
        with pytest.raises(SystemExit) as stopped:
            main(["report", str(tmp_path)])
        assert stopped.value.code == 2
        assert f"no detector to report on: {said}" in capsys.readouterr().err


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no TensorBoard"
    )
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_event_files_hold_the_history(tmp_path: Path) -> None:
    x = torch.rand(30, 3)
    options = {"num_steps": 7, "held_out": x[:5], "eval_every": 3, "progress": False}
    with TensorBoard(tmp_path, every=2):
        history = train(Model(3), Guide(3), x, **options).frame
    found = scalars(tmp_path)
    steps = [0, 2, 4, 5, 6]  # step 5 for its held-out rows
    kept = history["elbo"].iloc[steps]
    assert [step for step, _ in found["nats/ELBO"]] == steps
    np.testing.assert_allclose([v for _, v in found["nats/ELBO"]], kept, rtol=1e-6)
    assert [step for step, _ in found["nats/ELBO, held out"]] == [2, 5, 6]
    assert train(Model(3), Guide(3), x, **options).frame.shape == history.shape
    assert scalars(tmp_path) == found  # outside the block nothing is written


def test_watching_changes_nothing_of_the_training() -> None:
    x, seen = torch.rand(20, 3), []
    torch.manual_seed(0)
    programs = Model(3), Guide(3)
    torch.manual_seed(0)
    again = Model(3), Guide(3)
    plain = train(*programs, x, num_steps=6, progress=False).frame
    with watching(seen.append), watching(lambda record: None):
        watched = train(*again, x, num_steps=6, progress=False).frame
    assert plain["loss"].tolist() == watched["loss"].tolist() == [r["loss"] for r in seen]
    with pytest.raises(RuntimeError, match="enough"), watching(fail_at(3)):
        train(*again, x, num_steps=6, progress=False)
    train(*again, x, num_steps=2, progress=False)
    assert len(seen) == 6


def fail_at(step: int):
    def callback(record) -> None:
        if record["step"] == step:
            raise RuntimeError("enough")

    return callback


def test_a_run_is_tracked_and_its_name_and_numbers_stay(tmp_path: Path, capsys) -> None:
    argv = "run ring --quick --flow diagonal --num_flows 0 --activation silu --seeds 0".split()
    assert main([*argv, "--out", str(tmp_path / "plain")]) == 0
    assert main([*argv, "--out", str(tmp_path / "tracked"), "--tensorboard"]) == 0
    names = [
        sorted(p.name for p in (tmp_path / d / "runs").iterdir()) for d in ("plain", "tracked")
    ]
    assert names[0] == names[1] != []
    histories = [
        pd.read_csv(next((tmp_path / d / "runs").glob("*/history.csv"))).drop(columns="seconds")
        for d in ("plain", "tracked")
    ]
    pd.testing.assert_frame_equal(*histories)
    found = scalars(tmp_path / "tracked" / "tensorboard" / names[0][0])
    assert {"nats/ELBO", "result/auroc, importance", "result/log_evidence"} <= set(found)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    assert len(re.findall("failed", capsys.readouterr().out)) == 2


def test_without_tensorboard_the_option_says_how_to_get_it(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"pyro_vaeflow\[tensorboard\]\""):
        TensorBoard(tmp_path)
    with pytest.raises(SystemExit):
        main(["run", "ring", "--quick", "--tensorboard", "--out", str(tmp_path)])
    assert "TensorBoard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
