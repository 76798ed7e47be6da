"""What checkpoints there are, what is being done to them, and the manifests beside the images."""
