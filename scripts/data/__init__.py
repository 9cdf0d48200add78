"""Programs that prepare, check and generate data."""
