{
    "name": "A test: another addon that LISTENs on the dispatcher's connection",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "installable": True,
}
