"""A search by Optuna over settings of a study, by the evidence of rows held out."""

import sys

import optuna

from pyro_vaeflow import Study, read_summary, run_all

out, num_trials = sys.argv[1:]


def objective(trial):
    study = Study.from_dict(
        {
            "dataset": "breast_cancer",
            "num_steps": 50,
            "held_out_rows": 50,
            "latent_dim": trial.suggest_int("latent_dim", 1, 8),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True),
        }
    )
    folder = f"{out}/{trial.number}"
    run_all(study.expand(), folder, progress=False)
    return read_summary(folder)["held_out_log_evidence"].iloc[0]


search = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
search.optimize(objective, n_trials=int(num_trials))
print(search.best_params, search.best_value)
