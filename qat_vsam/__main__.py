"""`python -m qat_vsam` is `qat-vsam`."""

from __future__ import annotations

from qat_vsam.cli import main

if __name__ == "__main__":
    main()
