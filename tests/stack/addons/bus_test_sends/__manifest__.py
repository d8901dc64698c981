{
    "name": "A test: a module that sends while it is installed",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "post_init_hook": "send",
    "installable": True,
}
