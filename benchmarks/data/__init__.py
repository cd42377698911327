"""From image files to views on the device: what a training run is fed by, a file a question."""
