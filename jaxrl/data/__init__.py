"""Recorded transitions: files on disk, episodes on the host, one `Dataset` on the device."""
