"""Application-aware ("production") checkpoints for virtual machines on Linux/KVM."""

__version__ = "0.1.0"
