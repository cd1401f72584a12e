"""MED-V."""
