"""Where images and the small files beside them are: a port, files on a libvirt host, and files in memory for tests."""
