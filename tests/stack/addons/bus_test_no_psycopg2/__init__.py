"""A stand-in for an Odoo that has another driver: for Bus Alt Connection alone there is no psycopg2."""
import builtins

original = builtins.__import__


def without(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__") or ""
    if importer.startswith("odoo.addons.bus_alt_connection") and name.partition(".")[0] == "psycopg2" and not level:
        raise ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
    return original(name, globals, locals, fromlist, level)


builtins.__import__ = without
