"""Repositories: publishing versions into one, reading it, checking it."""
