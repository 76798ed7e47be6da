"""The images of a VM and its checkpoints: which image belongs to whom; how images are made, merged and removed."""
