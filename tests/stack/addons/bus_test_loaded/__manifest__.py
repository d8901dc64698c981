{
    "name": "A test: what each process has loaded is seen from outside",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "installable": True,
}
