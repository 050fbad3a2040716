"""How deep a posterior is where nobody says."""

# one of one's own: five
DEPTHS = {"diagonal": 0, "full": 1, "coupling": 4, "planar": 10, "iaf": 5, "spline": 2}


def depth(flow: str, num_flows: int | None) -> int:
    """The transforms of a posterior: as many as are asked for, or what suits it.

    Example:
        >>> depth("iaf", None), depth("iaf", 20)
        (5, 20)
    """
    return DEPTHS.get(flow, 5) if num_flows is None else num_flows
