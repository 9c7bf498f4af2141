"""Hostile clients of the siege, by kind.

attack.py     what an attack is, and the tally of what its requests got
guided.py     expensive guides
transport.py  HTTP before and around the key: heads, connections, bodies
shares.py     places: many requests, choices, tokens, refusals, cancellations
random_guides.py  random guides of one sort
registry.py   all of them by name
"""
