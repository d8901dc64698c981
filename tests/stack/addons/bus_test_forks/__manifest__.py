{
    "name": "A test: what a process has when it forks",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "installable": True,
}
