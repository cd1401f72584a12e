"""Run with ``python -m trimtransfer``."""

from trimtransfer.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m trimtransfer")
