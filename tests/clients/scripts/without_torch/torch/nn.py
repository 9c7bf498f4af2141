class Module:
    """For subclass checks: nothing is one."""
