"""Repositories in S3-compatible object stores: what writes to them. They are read as web servers are."""
