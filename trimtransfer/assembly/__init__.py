"""Syncing: planning, assembling and verifying an image from local data and a repository."""
