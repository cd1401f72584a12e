"""Trim Transfer."""
