"""Names of files in a run's folder that several commands use; imports no torch."""

METRICS = "metrics.csv"
EVENTS = "events.out.tfevents*"
"""Pattern of TensorBoard's event files. They are directly in the run's folder, because TensorBoard calls a run by the
folder of its events."""

TRACKERS = "trackers.json"
"""Name of each logger that is an experiment tracker -> the tracker's id of the run."""

CURVES, CONFUSION, LABELS = "curves.png", "confusion.png", "labels.png"
PICTURES = (CURVES, CONFUSION, LABELS)
