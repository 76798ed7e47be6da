"""The storage of images and of the small files beside them: the port, files on a libvirt host, and files in memory for
tests."""
