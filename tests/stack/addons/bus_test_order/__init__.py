"""Loads the addons that BUS_TEST_ORDER names, in this order: Odoo before series 16 loads a set, in any order."""
import importlib
import os


def post_load():
    loaded = []
    for name in os.environ["BUS_TEST_ORDER"].split(","):
        loaded.append(importlib.import_module("odoo.addons." + name))
        getattr(loaded[-1], "post_load", int)()
    for module in loaded:
        getattr(module, "when_all_are_loaded", int)()
