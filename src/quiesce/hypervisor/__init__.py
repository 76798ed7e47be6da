"""libvirt: domains, channels, block jobs, domain and storage XML. The same calls serve local and remote hosts.

All calls block; callers run them in worker threads. This room turns libvirt's errors into HypervisorError.
"""
