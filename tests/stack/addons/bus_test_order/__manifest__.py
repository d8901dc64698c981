{
    "name": "A test: loads others in order",
    "version": "1.0.0",
    "license": "AGPL-3",
    "author": "Bus Alt Connection contributors",
    "depends": ["bus"],
    "post_load": "post_load",
    "installable": True,
}
