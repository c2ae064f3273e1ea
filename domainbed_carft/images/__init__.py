"""Images, from files to batches: decoded and cropped one by one, then the rest by the batch."""
