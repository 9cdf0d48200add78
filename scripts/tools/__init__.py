"""Tools around a run: what is done with its checkpoints and outputs."""
