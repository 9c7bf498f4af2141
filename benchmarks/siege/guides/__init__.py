"""Guides for the siege: expensive ones by kind, and random ones from a seed."""
