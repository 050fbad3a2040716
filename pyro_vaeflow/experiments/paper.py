"""The published numbers that our tables stand beside; nothing else in the package holds them."""

PAPER_SOURCE = (
    "H. Shah, M. Sharpe, Variational Autoencoders with Normalizing Flows for Unsupervised Anomaly "
    "Detection, Table 1: KDD Cup 99, top 20% flagged, reconstruction score, mean ± standard "
    "deviation over 5 seeds, as published (not run here)."
)
# (posterior, depth) -> mean and standard deviation of F1.
TABLE_1 = {
    ("diagonal", 0): (0.938, 0.0008),
    ("planar", 5): (0.936, 0.0012),
    ("planar", 50): (0.937, 0.0002),
    ("iaf", 5): (0.936, 0.0007),
    ("iaf", 50): (0.911, 0.0121),
}


def paper_f1(dataset: str, model: str, num_flows: int, score: str) -> str:
    """The paper's F1 as text, empty where it has none.

    Example:
        >>> paper_f1("kddcup99", "iaf", 50, "reconstruction")
        '0.911 ± 0.0121'
    """
    published = dataset == "kddcup99" and score == "reconstruction"
    if not published or (model, num_flows) not in TABLE_1:
        return ""
    mean, spread = TABLE_1[model, num_flows]
    return f"{mean:.3f} ± {spread:.4f}"
