"""From text to packed, masked batches."""
