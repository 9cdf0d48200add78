"""Programs beside the trainer: runs, data preparation and tools."""
