"""The commands. Each module parses, calls one function of the library and shows its report."""
