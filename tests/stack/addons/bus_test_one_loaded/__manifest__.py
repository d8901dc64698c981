{
    "name": "A test: one database is loaded at a time",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["base"],
    "installable": True,
}
