"""The records: checkpoints, images, groups and settings, the journal of operations, and the manifests beside the images."""
