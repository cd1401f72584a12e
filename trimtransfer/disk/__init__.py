"""Disk formats: reading what a guest sees in a container file, and laying containers out."""
