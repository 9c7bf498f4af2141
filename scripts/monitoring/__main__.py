"""Writes the generated files, or prints the rules for other series, addresses and time scales.

python -m scripts.monitoring                                      writes every file
python -m scripts.monitoring rules --scope 'job="llm"' > rules.yaml
python -m scripts.monitoring rules --time-scale 0.01              for a drill: 5 minutes become 3 seconds
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from scripts.monitoring.files import drill_file, generated_files, rule_file
from scripts.monitoring.parameters import Parameters, defaults
from scripts.monitoring.rules import rule_groups


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.monitoring", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("rules", help="print the rules; other values than the defaults are options")
    command.add_argument("--time-scale", type=float, default=1, help="factor of every duration")
    for field in fields(Parameters):
        command.add_argument(f"--{field.name.replace('_', '-')}")
    options = parser.parse_args()
    if options.command == "rules":
        names = {field.name for field in fields(Parameters)}
        given = {name: value for name, value in vars(options).items() if name in names and value is not None}
        parameters = defaults(**given)
        if options.time_scale == 1:
            sys.stdout.write(rule_file(rule_groups(), parameters))
        else:
            sys.stdout.write(drill_file(rule_groups(), parameters, options.time_scale))
        return
    for path, content in generated_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
