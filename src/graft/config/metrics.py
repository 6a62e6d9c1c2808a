"""What is better: more or less?"""


def direction(metric: str) -> str:
    """ "min" for a loss, "max" for everything else."""
    return "min" if metric.split("/")[-1].endswith("loss") else "max"
