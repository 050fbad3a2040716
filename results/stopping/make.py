"""What a training saves that stops where its held-out bound is flat; ``--fit`` trains.

Each of two presets' trainings is run whole, and again with `Cooldown`, which does not know the
budget's end. Both are watched at 60 steps: the bound of held-out rows, which rules may read, and of
judging rows, normal rows of the test part, which say what a rule costs. A finished pair is a csv
file in ``runs/``, and a killed call goes on with the next.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow import Callback, Cooldown, load_study, score, train
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.callbacks import Run
from pyro_vaeflow.inference.cooldown import is_flat
from pyro_vaeflow.inference.saved_folder import write_whole
from pyro_vaeflow.programs.fitting import annealing, build, learning_rate
from pyro_vaeflow.tables.distinct_rows import distinct_rows, training_rows
from results.shared.pages import markdown, parse, parser, run_script, write_page

TABLES = ("cardio", "glass", "pendigits", "thyroid", "wdbc", "wine")
EVALUATIONS = 60  # in a whole training
MOST, SHARE = 500, 0.15  # rows held out, at most, and their share of the training rows
PATIENCE = 5  # evaluations without a better one: the rule that `train` has had
WINDOW = 8  # evaluations, as of `Cooldown`
LOSS = "standard errors of the bound"
RULES = {
    "cooldown": "With `Cooldown`: a constant rate, after its warm-up, until the slope of the last "
    "8 evaluations is below its standard error, then down to 0 in a quarter of the steps so far.",
    "patience": "The whole training, its rate on a cosine, stopped once 5 evaluations in a row are "
    "no better than the best: `patience=5`.",
    "slope": "The same, stopped where `Cooldown` would begin to cool.",
}
QUICK = {"dataset": "breast_cancer", "num_steps": 12, "flow": "diagonal", "num_flows": 0}


class Watch(Callback):
    """The bounds of some rows at evenly spaced steps, nats: ``bounds[name]``, a list of tensors.

    Those named ``held`` are what `train` would note of held-out rows.
    """

    def __init__(self, rows: dict[str, torch.Tensor], every: int) -> None:
        self.rows, self.every, self.steps = rows, every, []
        self.bounds: dict[str, list[torch.Tensor]] = {name: [] for name in rows}

    def after_step(self, run: Run) -> None:
        if run.step % self.every == 0:
            self.steps.append(run.step)
            for name, x in self.rows.items():
                scores = score(run.model, run.guide, x, num_samples=8, chunk_size=500)
                self.bounds[name].append(scores.elbo.double())
            run.records[-1]["held_out_elbo"] = self.bounds["held"][-1].mean().item()


def runs_of(quick: bool) -> list[ExperimentConfig]:
    """The presets' trainings: six tables with the diagonal posterior, KDD with five posteriors."""
    adbench, kdd = load_study("adbench"), load_study("kdd")
    if quick:
        return adbench.expand(QUICK, [0])[:1]
    diagonal = {"flow": "diagonal", "num_flows": 0}
    tables = [adbench.expand({"dataset": f"adbench:{name}"} | diagonal, [0]) for name in TABLES]
    return [*(configs[0] for configs in tables), *kdd.expand(seeds=[0])]


def watched(config: ExperimentConfig) -> pd.DataFrame:
    """Both trainings, a row an evaluation: means and standard errors of bounds, nats per row.

    ``lost`` is what the judging rows' bound lacks there to that of the step which held-out rows
    choose of the whole training, ``lost_stderr`` the standard error of that difference over rows.
    """
    task = load_task(config)
    x, weights = training_rows(task.x_train, config.count_power)
    held = min(MOST, round(SHARE * len(x)))
    normal = distinct_rows(task.x_test[torch.from_numpy(task.is_anomaly == 0)])[0]
    order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(config.seed))
    rows = {"held": x[:held], "judge": normal[order[:MOST]]}
    schedule, loss = annealing(config.annealing, config.num_steps)
    plain = replace(config, learning_rate_schedule="constant", learning_rate_stop=0.0)
    rule = Cooldown(learning_rate(plain, config.num_steps))
    frames, best = [], None
    for name, rate, rules in (
        ("whole", learning_rate(config, config.num_steps), []),
        ("cooldown", rule, [rule]),
    ):
        model, guide = build(config, task.num_features, x[held:])
        watch = Watch(rows, max(1, config.num_steps // EVALUATIONS))
        train(
            model,
            guide,
            x[held:],
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            learning_rate=rate,
            schedule=schedule,
            loss=loss,
            clip_norm=config.clip_norm,
            weights=None if weights is None else weights[held:],
            seed=config.seed,
            progress=False,
            callbacks=[watch, *rules],
        )
        frame = pd.DataFrame({"rule": name, "step": watch.steps})
        frame["anneal"] = [schedule(step - 1) for step in watch.steps]
        bounds = {kind: torch.stack(parts) for kind, parts in watch.bounds.items()}
        for kind, values in bounds.items():
            frame[kind] = values.mean(1).numpy()
            frame[f"{kind}_stderr"] = (values.std(1) / values.shape[1] ** 0.5).numpy()
        if best is None:
            best = bounds["judge"][bounds["held"].mean(1).argmax()]
        lost = best - bounds["judge"]
        frame["lost"] = lost.mean(1).numpy()
        frame["lost_stderr"] = (lost.std(1) / lost.shape[1] ** 0.5).numpy()
        frames.append(frame)
    names = {"dataset": config.dataset.removeprefix("adbench:"), "flow": config.flow}
    names |= {"num_flows": config.num_flows, "seed": config.seed, "num_steps": config.num_steps}
    return pd.concat(frames).assign(**names)


def fit_missing(folder: Path, runs: Sequence[ExperimentConfig]) -> None:
    """Trains what is not finished, and writes evaluations.csv of what is, after each training."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    finished: list[pd.DataFrame] = []
    for config in tqdm(runs, desc="stopping", unit="training"):
        path = folder / "runs" / f"{config.run_name}.csv"
        if not path.is_file():
            text = watched(config).to_csv(index=False, float_format="%.6g")
            write_whole(path, text.encode())
        finished = [pd.concat([*finished, pd.read_csv(path)])]
        finished[0].to_csv(folder / "evaluations.csv", index=False)


def stopped_cold(whole: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The evaluations of a whole training up to where a rule that only reads them would stop it."""
    for count in range(1, len(whole) + 1):
        seen = whole.iloc[:count]
        if rule == "patience":
            stops = count - 1 - seen["held"].argmax() >= PATIENCE
        else:
            recent = seen.iloc[-WINDOW:]
            is_whole = (
                len(recent) == WINDOW and (recent["anneal"] == recent["anneal"].iloc[-1]).all()
            )
            stops = is_whole and is_flat(recent["step"].tolist(), recent["held"].tolist())
        if stops:
            return seen
    return whole


def summary(evaluations: pd.DataFrame) -> pd.DataFrame:
    """What each rule saves and loses, a line a training, and means over all at the end."""
    lines = []
    names = ["dataset", "flow", "num_flows"]
    for (dataset, flow, depth), group in evaluations.groupby(names, sort=False):
        whole = group[group["rule"] == "whole"]
        rules = {"cooldown": group[group["rule"] == "cooldown"]}
        rules |= {name: stopped_cold(whole, name) for name in ("patience", "slope")}
        for rule, seen in rules.items():
            best = seen.loc[seen["held"].idxmax()]
            lines.append(
                {
                    "data set": dataset,
                    "posterior": method_name(flow, depth),
                    "rule": rule,
                    "steps": int(seen["step"].max()),
                    "of": int(best["num_steps"]),
                    "saved": 1.0 - seen["step"].max() / best["num_steps"],
                    "nats lost": best["lost"],
                    "+-": best["lost_stderr"],
                    LOSS: best["lost"] / best["judge_stderr"],
                }
            )
    table = pd.DataFrame(lines)
    means = table.groupby("rule", sort=False)[["saved", "nats lost", LOSS]].mean().reset_index()
    return pd.concat([table, means.assign(**{"data set": "mean"})], ignore_index=True)


def write_tables(folder: Path) -> None:
    """Writes tables.md from evaluations.csv."""
    table = summary(pd.read_csv(folder / "evaluations.csv"))
    blocks = []
    for rule, about in RULES.items():
        part = table[table["rule"] == rule].drop(columns="rule")
        part["saved"] = part["saved"].map("{:.0%}".format)
        part = part.astype({"steps": "Int64", "of": "Int64"})
        blocks += [f"## {rule}", about, markdown(part.round(2))]
    write_page(
        folder / "tables.md",
        f"# {folder.resolve().name}: tables",
        "Made by `python -m results.stopping.make` from evaluations.csv, a line an evaluation; "
        "README.md says what they show. Nats per row of the judging rows' bound, at the step that "
        "the held-out rows choose, that it lacks to the whole training; +- is the standard error "
        "of that difference over rows, and the last column is the loss in standard errors of that "
        "bound itself.",
        *blocks,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains what is asked for and writes the tables."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="trains what is not finished")
    values = parse(command, argv)
    if values.quick or values.fit:
        fit_missing(values.folder, runs_of(values.quick))
    write_tables(values.folder)


if __name__ == "__main__":
    run_script(main, "stopping", "python -m results.stopping.make --fit")
