"""Signed metadata of a repository (TUF): what may be believed of it, whoever delivers it. FORMAT.md, "Trust"."""
