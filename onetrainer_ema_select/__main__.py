"""`python -m onetrainer_ema_select` is the command line."""

from __future__ import annotations

from onetrainer_ema_select.cli.app import main

if __name__ == "__main__":
    main()
