"""What `doctor` looks for, and how it is mended."""
