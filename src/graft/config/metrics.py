"""Direction in which a metric improves."""


def direction(metric: str) -> str:
    """Return "min" for a loss and "max" for any other metric."""
    return "min" if metric.split("/")[-1].endswith("loss") else "max"
