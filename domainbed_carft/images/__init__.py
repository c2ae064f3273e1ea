"""Images, from files to batches: decoded and cropped one by one, then transformed by batch."""
