"""Many engines from one file, one after the other; running it again goes on where it stopped.

fleet_file  reads the TOML file into entries, one for each engine
jobs        what each entry asks for: a plan that can be run, or the reasons why not
run_fleet   runs them and keeps what came of each
summary     what `python -m build_engine fleet` shows
"""
