"""One file per pitfall. ``check.py`` says what a check is; ``all_checks.py`` lists them."""
