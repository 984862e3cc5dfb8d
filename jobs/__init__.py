"""Named complete runs: `ray job submit --working-dir . -- python -m jobs.<name>`; `--help` shows flags."""
