"""by_class.csv: the share of each class's test rows that is flagged at the true ratio."""

from pathlib import Path

import pandas as pd

from pyro_vaeflow.escaping import csv_text
from pyro_vaeflow.experiments.results import finished_runs


def write_by_class(out: Path) -> pd.DataFrame:
    """Writes ``out/by_class.csv``, means over seeds, where runs have more than two classes.

    Recall for classes that are anomalies, false flags for the others.
    """
    rows = []
    for run in finished_runs(out):
        anomalous = run.metrics.get("anomalous_classes", [])
        method = {name: getattr(run.config, name) for name in ("dataset", "flow", "num_flows")}
        for score, shares in run.metrics.get("flagged_by_class", {}).items():
            for name, share in shares.items():
                of_class = {"class": name, "is_anomaly": int(name in anomalous)}
                counts = {"rows": run.metrics["classes"][name], "flagged": share}
                rows.append(method | {"score": score} | of_class | counts)
    if not rows:
        return pd.DataFrame()
    keys = [name for name in rows[0] if name not in ("rows", "flagged")]
    table = pd.DataFrame(rows).groupby(keys, sort=False, dropna=False).mean().reset_index()
    (out / "by_class.csv").write_text(csv_text(table, float_format="%.6g"))
    return table
