"""Changes to state dicts."""


def without(name):
    return lambda contents: contents["model"].pop(name)
