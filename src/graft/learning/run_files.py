"""Names of files in a run's folder that several commands use; imports no torch."""

METRICS = "metrics.csv"
EVENTS = "events.out.tfevents*"
"""Pattern of TensorBoard's event files. They are directly in the run's folder, because TensorBoard calls a run by the
folder of its events."""

CURVES, CONFUSION = "curves.png", "confusion.png"
PICTURES = (CURVES, CONFUSION)
