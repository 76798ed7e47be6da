"""libvirt, and nothing else: domains, volumes, channels, block jobs. Local and remote hosts by the same calls.

Everything here blocks; callers run it in worker threads. Errors of libvirt leave this room as HypervisorError.
"""
