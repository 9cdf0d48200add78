"""Clips on disk to batches on the device: lists, frame sampling, decoding, augmentation."""
