"""Rules, dashboards and the page about them, each from one list: `python -m scripts.monitoring` writes the files."""
